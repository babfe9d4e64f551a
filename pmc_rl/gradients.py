"""Training that changes nothing is an error: there is something to train, and a gradient reaches it."""

from torch import nn
from transformers import TrainerCallback

from pmc_rl.errors import RecipeError


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets; at least one, or a [`RecipeError`]."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RecipeError(["nothing to train: all weights of the model are frozen, and use_peft adds no adapter"])
    return trained


def check_gradients(model: nn.Module) -> None:
    """After a backward pass: a [`RecipeError`] if every gradient is missing or exactly zero."""
    gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    if not any(gradient.count_nonzero() for gradient in gradients):
        advice = "train other modules (lora_target_modules), or without gradient_checkpointing"
        raise RecipeError(
            [f"no gradient reaches the weights that are trained, so training would change nothing: {advice}"]
        )


class GradientCheck(TrainerCallback):
    """Stops a run whose model has nothing to train, and one whose first optimizer step would change nothing; whoever
    makes a batch without a loss says by `due` that it does not count."""

    def __init__(self):
        self.due, self.checked = True, False

    def on_init_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        trainable_parameters(model)

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module, **kwargs) -> None:
        if self.due and not self.checked:
            check_gradients(model)
            self.checked = True

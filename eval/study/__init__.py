"""Studies: several runs compared, or settings searched for; on Optuna."""

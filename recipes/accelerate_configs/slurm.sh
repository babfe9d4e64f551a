#!/usr/bin/env bash
# Slurm, one or more nodes: sbatch recipes/accelerate_configs/slurm.sh recipes/phi.yaml [--key value ...]
# Set gpus-per-node, and nodes, to what you have; output_dir must be a folder that all nodes share. The same line again goes on
# where the run stopped; --requeue does so by itself after preemption, not after the time limit. Not run on a cluster yet.
#SBATCH --job-name=pmc_rl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180      # to the steps, three minutes before the end: saves a checkpoint
#SBATCH --requeue
set -euo pipefail
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"   # else every process of a node would share one core
export HEAD_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export PET_SHUTDOWN_TIMEOUT=170   # seconds that torch's launcher (2.13) leaves its workers after a signal, to end their step

# one launcher a node, which starts a process a GPU
srun bash -c 'exec accelerate launch --multi_gpu --mixed_precision no \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port 29500 \
    pmc_rl/train.py "$@" --resume_from_checkpoint auto' bash "$@"

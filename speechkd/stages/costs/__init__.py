"""What a recipe costs on a cluster: memory of a GPU, bytes between GPUs, checkpoints, reading, and hours of each stage."""

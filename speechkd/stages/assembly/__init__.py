"""What a run is built from: the recipe's student, losses and live teachers, checked from configuration files, then built."""

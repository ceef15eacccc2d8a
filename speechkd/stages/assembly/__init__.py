"""What a run trains: checks the student, losses and live teachers of a recipe from configuration files, then builds them."""

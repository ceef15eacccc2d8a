"""`speechkd doctor`: what this machine or allocation has, what is missing, and the way out of each problem."""

"""What other packages can add, and how it is found."""

"""What a model was made from: its base, its plan and the stages that trained or merged it, on its card."""

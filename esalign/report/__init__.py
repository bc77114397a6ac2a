"""What people see of a run: words and numbers, the terminal, the page, the model card."""

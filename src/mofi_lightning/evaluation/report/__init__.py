"""`report.html`: one file without external resources that compares models in numbers and pictures."""

"""What training costs beside the maths that it does."""

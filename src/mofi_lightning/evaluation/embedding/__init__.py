"""Images and texts to vectors, each embedded once."""

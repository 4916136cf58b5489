"""What the stream of training data costs beside decoding alone and beside other containers."""

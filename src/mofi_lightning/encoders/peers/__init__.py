"""Models of other libraries behind the interface of `DualEncoder`: Hugging Face's CLIP and SigLIP, open_clip.

Each keeps its library's own preprocessing and tokenizer, so its embeddings are those it gives there. Nothing
is unpickled but through torch's weights-only loader, and no code that comes with weights runs.
"""

from mofi_lightning.encoders.peers.base import PeerEncoder
from mofi_lightning.encoders.peers.hugging_face import HuggingFaceEncoder, most_tokens
from mofi_lightning.encoders.peers.loading import load_encoder, load_model
from mofi_lightning.encoders.peers.open_clip import OpenClipEncoder

__all__ = [
    "HuggingFaceEncoder",
    "OpenClipEncoder",
    "PeerEncoder",
    "load_encoder",
    "load_model",
    "most_tokens",
]

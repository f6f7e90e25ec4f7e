"""Files: atomic writes, downloads, the Hub, and safetensors."""

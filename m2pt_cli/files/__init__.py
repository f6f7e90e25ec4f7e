"""Files, the Hub, and safetensors."""

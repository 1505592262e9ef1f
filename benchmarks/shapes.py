"""The committed list of shapes. Removing one is a changelog entry."""

# (rows, classes): from digits to a language model's vocabulary, about 1.3 to 17 million logits each; odd sizes included.
DENSE = (
    (131072, 10),
    (65536, 32),
    (65536, 128),
    (32768, 257),
    (8192, 1000),
    (4096, 4099),
    (2048, 8192),
    (1024, 16384),
    (512, 32768),
    (256, 50257),
    (128, 65536),
    (64, 131072),
)

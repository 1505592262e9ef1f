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

# (rows, features, classes) of the linear losses: every width of the head with a small, an odd and a large vocabulary.
LINEAR = (
    (4096, 64, 4096),
    (2048, 64, 16384),
    (1023, 64, 50257),
    (1024, 64, 65536),
    (4096, 256, 8192),
    (2048, 256, 16384),
    (1021, 256, 32771),
    (1024, 256, 65536),
    (2048, 1024, 4099),
    (1024, 1024, 16384),
    (1024, 1024, 32768),
)

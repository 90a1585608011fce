"""Damage to files of models."""


def mutated(content, generator):
    """Bytes flipped, cut, inserted, zeroed, swapped or doubled."""
    content = bytearray(content)
    first, second = sorted(generator.randrange(len(content)) for _ in range(2))
    kind = generator.randrange(6)
    if kind == 0:
        content[first] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del content[first:]
    elif kind == 2:
        content[first:first] = generator.randbytes(generator.choice((1, 8, 100)))
    elif kind == 3:
        content[first:second] = bytes(second - first)
    elif kind == 4:
        content[first], content[second] = content[second], content[first]
    else:
        content[first:first] = content[first:second]
    return bytes(content)

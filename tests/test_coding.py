"""Packing, masks and frames."""

import itertools

import numpy as np
import pytest

from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.coding import decode_mask, encode_mask, pack, restore, shrink, unpack
from hsq_env.size import encoding


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001])
def test_unpack_inverts_pack(bits: int, count: int) -> None:
    values = np.random.default_rng(count).integers(2**bits, size=count)
    packed = pack(values, bits)
    assert packed.dtype == np.uint8 and len(packed) == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, bits, count), values)


def test_the_first_value_takes_the_highest_bits() -> None:
    assert pack(np.array([1, 2, 3, 0]), 2).tolist() == [0b01101100]
    assert pack(np.array([5, 2, 7]), 3).tolist() == [0b10101011, 0b10000000]


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(3, 12), (4, 9, 3, 3)])
def test_a_mask_of_channels_takes_a_bit_for_each(sparsity: float, shape: tuple[int, ...]) -> None:
    coded = encoding(shape, Choice(8, sparsity), "channels")
    read = np.random.default_rng(0).permutation(shape[1]) >= int(sparsity * shape[1])
    mask = np.broadcast_to(read.reshape(1, -1, *[1] * (len(shape) - 2)), shape)
    packed = encode_mask(mask, coded, sparsity)
    assert coded.kind == "channels" and len(packed) == coded.mask_bytes == -(-shape[1] // 8)
    assert np.array_equal(np.unpackbits(packed, count=shape[1]).astype(bool), read)
    assert np.array_equal(decode_mask(packed, coded, sparsity, shape), mask.reshape(-1))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("kind", ["nothing", "noise", "alike"])
def test_restore_inverts_shrink(width: int, kind: str) -> None:
    content = {"nothing": b"", "noise": np.random.default_rng(0).bytes(4000), "alike": bytes([1, 2, 3, 4] * 1000)}[kind]
    stored = shrink(content, width)
    assert restore(stored, len(content), width) == content
    assert len(stored) < len(content) if kind == "alike" else stored == content


def test_a_frame_of_another_length_is_never_decoded() -> None:
    bomb = shrink(bytes(10**7))
    assert len(bomb) < 1000
    for length in (10**7 - 1, 10**7 + 1, 2**62, 0, 10):
        with pytest.raises(InputError, match="wrong length"):
            restore(bomb, length)
    for damaged in (bomb[:-1], bomb + b"x", b"x" + bomb[1:]):
        with pytest.raises(InputError):
            restore(damaged, 10**7)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_a_group_of_four_takes_the_number_of_its_combination(sparsity: float) -> None:
    """Combinations of the places that survive, in the order of dictionaries."""
    kept = 4 - round(4 * sparsity)
    ways = list(itertools.combinations(range(4), kept))
    drawn = np.random.default_rng(0).integers(len(ways), size=(6, 10))
    mask = np.zeros((6, 10, 4), dtype=bool)
    for at, way in np.ndenumerate(drawn):
        mask[at][list(ways[way])] = True
    coded = encoding((6, 40), Choice(8, sparsity), "n:m")
    packed = encode_mask(mask.reshape(6, 40), coded, sparsity)
    assert coded.kind == "n:m" and len(packed) == coded.mask_bytes
    assert np.array_equal(packed, pack(drawn.reshape(-1), {4: 2, 6: 3}[len(ways)]))
    found = decode_mask(packed, coded, sparsity, (6, 40))
    assert found.dtype == np.bool_ and np.array_equal(found, mask.reshape(-1))


def test_a_combination_that_there_is_not_is_refused() -> None:
    coded = encoding((4, 8), Choice(8, 0.5), "n:m")
    for number in (6, 7):
        with pytest.raises(InputError, match="impossible N:M index"):
            decode_mask(pack(np.array([0, 5, 1, 2, 3, 4, number, 0]), 3), coded, 0.5, (4, 8))
    assert decode_mask(np.zeros(0, np.uint8), coded, 0.5, (0, 8)).tolist() == []


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_a_bitmask_has_a_bit_for_each_weight(sparsity: float) -> None:
    coded = encoding((3, 5), Choice(8, sparsity))
    mask = np.random.default_rng(1).random((3, 5)) >= sparsity
    packed = encode_mask(mask, coded, sparsity)
    assert coded.kind == "bitmask" and packed.tolist() == np.packbits(mask).tolist()
    found = decode_mask(packed, coded, sparsity, (3, 5))
    assert found.dtype == np.bool_ and np.array_equal(found, mask.reshape(-1))


def test_zeros_with_a_code_of_their_own_need_no_mask() -> None:
    found = encode_mask(np.ones((3, 5), dtype=bool), encoding((3, 5), Choice(4)), 0.0)
    assert found.dtype == np.uint8 and len(found) == 0


def test_a_part_that_is_no_whole_number_of_elements_is_refused() -> None:
    with pytest.raises(InputError, match="wrong length"):
        restore(b"abc", 5, 2)
    with pytest.raises(InputError, match="cannot be decoded"):
        restore(b"abc", 6, 2)

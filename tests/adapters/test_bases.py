import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from clip_randlora.adapters.bases import number_of_bases, random_bases

DISTRIBUTIONS = ("uniform", "sparse", "very_sparse")
# of r = 6, D = 96, d = 64, seed 7: a change of any bit breaks every saved adapter
CHECKSUMS = {
    "uniform": "0c2f67b931b33d9d467f7d6f1dc8ffdf96d8411b2725a7bb5f6078dd21e586ac",
    "sparse": "52807ec23e382e24aa65da41da8134a2a71323664dc6e06d64975c35057322dd",
    "very_sparse": "6036f05cf303531e2cb8d7ef8c997e8e849403ace5dcd5c1f758d175513233c4",
}


def checksum(bases) -> str:
    arrays = (part.contiguous().numpy().astype("<f4") for part in bases)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_bits_are_pinned(distribution):
    assert checksum(random_bases(6, 96, 64, distribution, seed=7)) == CHECKSUMS[distribution]


def test_first_entry_by_hand():
    # k is the top 24 bits of the low half of Philox's first raw word for key (7, 2), whose stream
    # fills columns 6 to 11 of the matrix; n = 11 bases, so column 6 is the first of base 6
    word = int(np.random.Philox(key=np.array([7, 2], dtype=np.uint64)).random_raw())
    k = (word & 0xFFFFFFFF) >> 8
    expected = 3**0.5 * (2 * k + 1 - 2**24) / 2**24
    assert random_bases(6, 96, 64, seed=7).b[6, 0, 0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_same_bits_in_a_new_process():
    code = (
        "from clip_randlora.adapters.bases import random_bases; import sys;"
        "sys.stdout.buffer.write(random_bases(3, 20, 10, seed=5).b.contiguous().numpy().tobytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert out == random_bases(3, 20, 10, seed=5).b.contiguous().numpy().tobytes()


@pytest.mark.parametrize("distribution", ("uniform", "sparse"))
def test_a_smaller_pair_is_a_slice_of_a_larger_one(distribution):
    large, small = (random_bases(4, *shape, distribution) for shape in ((64, 48), (40, 30)))
    for ours, theirs in zip(large.sliced(40, 30), small, strict=True):
        assert torch.equal(ours, theirs)


def test_generated_once_per_process():
    assert random_bases(4, 64, 48).b is random_bases(4, 64, 48).b


@pytest.mark.parametrize(("distribution", "s"), [("sparse", 3.0), ("very_sparse", 768**0.5)])
def test_ternary_entries(distribution, s):
    b, a = random_bases(6, 768, 768, distribution)
    assert b.unique().tolist() == pytest.approx([-(s**0.5), 0, s**0.5])
    # 768 * 768 draws with P(not 0) = 1 / s: five standard deviations of the count
    share, deviation = 1 / s, (1 / s * (1 - 1 / s) / b.numel()) ** 0.5
    assert (b != 0).double().mean().item() == pytest.approx(share, abs=5 * deviation)
    assert a.abs().unique().tolist() == [1.0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_standard_deviation_is_one(distribution):
    b, _ = random_bases(6, 768, 768, distribution)
    assert b.std().item() == pytest.approx(1, abs=0.01)
    assert b.mean().item() == pytest.approx(0, abs=0.01)


def test_number_of_bases_rounds_up():
    assert [number_of_bases(768, rank) for rank in (1, 6, 7, 768, 1000)] == [768, 128, 110, 1, 1]


def test_other_dtypes_round_the_float32_entries():
    exact = random_bases(4, 64, 48)
    half = random_bases(4, 64, 48, dtype=torch.bfloat16)
    assert torch.equal(half.b, exact.b.bfloat16())
    assert half.matrix().data_ptr() == half.b.data_ptr()  # still a view of one matrix


def test_bases_are_dealt_from_the_columns_of_one_matrix():
    bases = random_bases(4, 64, 48)  # n = 12
    assert torch.equal(bases.b[5][:, 2], bases.matrix()[:, 2 * 12 + 5])
    small = bases.sliced(40, 30)  # n = 8
    assert torch.equal(small.b[5][:, 2], bases.matrix()[:40, 2 * 8 + 5])


def test_made_in_inference_they_serve_training_too():
    with torch.inference_mode():
        for dtype in (torch.float32, torch.float64):
            assert not random_bases(2, 33, 17, seed=99, dtype=dtype).b.is_inference()

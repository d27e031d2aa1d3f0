"""Estimates: the law of scaling, what is predicted from neighbours, and what is only rough."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_machines import SMALL, measured, profile

from broker.errors import UsageError
from broker.profiles import ProfileRecord, ProfileValues
from broker.throughput import Profile
from planner.estimate import Basis, Estimator, Measured
from planner.model_shape import known_shape, parse_config
from planner.scaling import Law, Times, fit_law, law_from_one, of_other_model, with_full_batches

positive = st.floats(1e-9, 1e-1)
times = st.tuples(*[positive] * 6).map(lambda t: Times(*t))
laws = st.builds(Law, times, times, st.booleans()).map(lambda law: replace(law, fixed=law.fixed._replace(c=0.0, f=0.0)))


class TestLaw:
    @given(laws, st.sets(st.sampled_from([1, 2, 3, 4, 8]), min_size=2))
    def test_a_law_is_found_again_from_what_it_gives(self, law: Law, degrees: set[int]) -> None:
        found = fit_law({n: law.at(n) for n in degrees}, law.pcie)
        for n in (1, 2, 4, 8, 16):
            assert found.at(n) == pytest.approx(law.at(n), rel=1e-6)

    @given(laws, st.sampled_from([1, 2, 4]))
    def test_one_measurement_and_the_fixed_part_give_the_law(self, law: Law, degree: int) -> None:
        found = law_from_one(degree, law.at(degree), law.fixed, law.pcie)
        for n in (1, 2, 8):
            # What is fixed cannot be told on one device over PCIe, where nothing is sent.
            if not (law.pcie and degree == 1):
                assert found.at(n) == pytest.approx(law.at(n), rel=1e-6)

    @given(times, times, st.sampled_from([1, 2, 4]), st.booleans())
    def test_no_part_is_negative_whatever_was_measured(self, one: Times, two: Times, degree: int, pcie: bool) -> None:
        for law in (fit_law({1: one, 2: two}, pcie), law_from_one(degree, one, two, pcie)):
            assert min(*law.divided, *law.fixed) >= -1e-15
            assert all(x >= y - 1e-15 for x, y in zip(law.at(1)[2::3], law.at(8)[2::3], strict=True))

    def test_more_devices_help_less_where_more_is_sent(self) -> None:
        law = Law(Times(1, 1, 1, 1, 1, 1), Times(0.1, 0.1, 0, 0.1, 0.1, 0))
        assert law.at(4) == pytest.approx((0.35, 0.35, 0.25, 0.35, 0.35, 0.25))
        assert replace(law, pcie=True).at(4) == pytest.approx((0.35, 0.55, 0.25, 0.35, 0.55, 0.25))

    def test_another_model_sends_by_its_layers_and_its_bytes(self) -> None:
        assert of_other_model(Times(1, 1, 0, 1, 1, 0), 2.5, 5.0) == (2.5, 5.0, 0.0, 2.5, 5.0, 0.0)

    def test_full_batches_cost_what_tokens_cost(self) -> None:
        few = Times(0.01, 1e-4, 0, 0.01, 1e-6, 0)
        assert with_full_batches(few, 0.8).e == pytest.approx(8e-5)
        assert with_full_batches(few._replace(e=2e-4), 0.8).e == 2e-4


def _of_cpu(cores: int, dtype: str, known: Profile) -> Measured:
    return Measured("cpu", "small", cores, dtype, known, 4096)


def whole_steps(profile: Profile) -> tuple[float, float]:
    """Seconds of a prefill and of a decode step, half the seats and memory taken."""
    return profile.prefill_seconds(125), profile.decode_step_seconds(4, 500)


class TestEstimator:
    def test_what_was_measured_is_taken_as_it_is(self) -> None:
        found = Estimator(SMALL, [measured("X1"), measured("X1", 2, 0.6)]).estimate("X1", 2, "bfloat16")
        assert (found.basis, found.times) == (Basis.MEASURED, Times.of(profile(0.6)))

    def test_another_degree_follows_the_law_through_both(self) -> None:
        found = Estimator(SMALL, [measured("X1"), measured("X1", 2, 0.6)]).estimate("X1", 4, "bfloat16")
        assert found.basis is Basis.PREDICTED
        assert found.source == "from tp 1 and 2"
        assert found.times.d == pytest.approx(0.01 * (0.8 / 4 + 0.2))
        assert found.times.f == pytest.approx(8e-8 * 0.25, rel=0.2)

    def test_a_model_measured_once_sends_as_another_on_the_same_device_does(self) -> None:
        other = [measured("X1", n, slower, model="Llama-3.1-8B") for n, slower in ((1, 1.0), (2, 0.6))]
        large = known_shape("Llama-3.1-70B")
        assert large is not None
        own = Measured("X1", "Llama-3.1-70B", 2, "", profile(6.0), 4096)
        found = Estimator(large, [*other, own]).estimate("X1", 4, "bfloat16")
        fixed = 0.2 * 0.01 * 80 / 32
        assert found.times.d == pytest.approx((0.06 - fixed) / 2 + fixed)

    def test_another_precision_by_the_ratio_that_was_measured_else_by_bytes(self) -> None:
        one = measured("X1")
        by_bytes = Estimator(SMALL, [one]).estimate("X1", 1, "float32")
        assert by_bytes.times == pytest.approx([2 * t for t in Times.of(one.profile)])
        assert by_bytes.source.endswith("in bfloat16")
        both = [one, measured("X1", dtype="float32", slower=1.6), measured("X1", 2, 0.6)]
        assert Estimator(SMALL, both).estimate("X1", 2, "float32").times == pytest.approx(
            [1.6 * t for t in Times.of(profile(0.6))]
        )

    def test_cores_share_by_the_law_through_what_was_measured(self) -> None:
        of_cores = [measured("cpu", 1), measured("cpu", 2, 0.7)]
        found = Estimator(SMALL, of_cores).estimate("cpu", 4, "bfloat16")
        assert found.times.d == pytest.approx(0.01 * (0.6 / 4 + 0.4))
        one = Estimator(SMALL, of_cores[:1]).estimate("cpu", 2, "bfloat16")
        assert 0.005 < one.times.d < 0.01

    @given(laws.map(lambda law: replace(law, pcie=False)))
    def test_cores_in_two_precisions_share_the_memory_bus(self, law: Law) -> None:
        """One number of cores in each precision: what each core reads decides, and that is the same for the others."""
        of_two = _of_cpu(2, "bfloat16", law.at(2).profile(1000, 8))
        of_one = _of_cpu(1, "float32", law.at(0.5).profile(1000, 8))
        some = Estimator(SMALL, [of_two, of_one])
        for cores, dtype in ((1, "bfloat16"), (2, "float32")):
            found = some.estimate("cpu", cores, dtype)
            assert found.basis is Basis.PREDICTED
            assert found.source.endswith("and other precisions")
            ends = [whole_steps(m.profile) for m in (of_two, of_one)]
            middle = [math.sqrt(x * y) for x, y in zip(*ends, strict=True)]
            assert whole_steps(found.times.profile(1000, 8)) == pytest.approx(middle, rel=1e-6)
        assert some.estimate("cpu", 2, "bfloat16").times == law.at(2)

    @given(laws.map(lambda law: replace(law, pcie=False)), st.sampled_from([0.0, 0.5, 1.0]))
    def test_what_a_step_is_made_up_of_may_be_told_wrong(self, law: Law, share: float) -> None:
        """A profile that takes what is each request's for its context's (or the other way round) predicts the same."""
        of_two = _of_cpu(2, "bfloat16", law.at(2).profile(1000, 8))
        times = law.at(0.5)
        requests, context = 4, 500
        marginal = times.e * requests + times.f * context
        told_wrong = times._replace(e=share * marginal / requests, f=(1 - share) * marginal / context)
        found = [
            Estimator(SMALL, [of_two, _of_cpu(1, "float32", each.profile(1000, 8))])
            .estimate("cpu", 1, "bfloat16")
            .times.profile(1000, 8)
            for each in (times, told_wrong)
        ]
        assert whole_steps(found[1]) == pytest.approx(whole_steps(found[0]), rel=1e-6)

    @given(laws.map(lambda law: replace(law, pcie=False)), st.floats(4.1, 50.0))
    def test_a_cpu_without_instructions_for_16_bit_tells_nothing_of_32_by_it(self, law: Law, slower: float) -> None:
        """Its 16 bit is slower on two cores than its 32 bit on one: each precision divides its own time by cores."""
        fast, slow = law.at(1).profile(1000, 8), law.at(1).profile(1000, 8).slower(slower)
        some = Estimator(SMALL, [_of_cpu(2, "bfloat16", slow), _of_cpu(1, "float32", fast)])
        for cores, dtype, own in ((1, "bfloat16", slow), (2, "float32", fast)):
            found = whole_steps(some.estimate("cpu", cores, dtype).times.profile(1000, 8))
            gained = [x / y if cores == 1 else y / x for x, y in zip(found, whole_steps(own), strict=True)]
            assert all(1.8 < times_faster < 2 for times_faster in gained)

    def test_a_ratio_that_was_measured_goes_before_bytes(self) -> None:
        known = [measured("cpu", 1), measured("cpu", 1, 1.3, dtype="float32"), measured("cpu", 2, 0.7)]
        found = Estimator(SMALL, known).estimate("cpu", 2, "float32")
        assert found.times == pytest.approx([1.3 * t for t in Times.of(profile(0.7))])

    def test_what_nobody_measured_is_rough_and_says_so(self) -> None:
        shape = known_shape("Llama-3.1-8B")
        assert shape is not None
        some = Estimator(shape, [])
        fast, slow = some.estimate("NVIDIA H100 80GB HBM3", 1, "bfloat16"), some.estimate("L4", 1, "bfloat16")
        assert (fast.basis, slow.basis) == (Basis.ROUGH, Basis.ROUGH)
        assert all(x < y for x, y in zip(fast.times, slow.times, strict=True))
        # 16 GB of weights at 3.35 TB/s: no step is shorter, and good kernels come near
        assert 0.0048 < fast.times.d < 0.0070
        with pytest.raises(UsageError, match="nothing is known of the device 'X9': measure it"):
            some.estimate("X9", 1, "bfloat16")

    def test_a_name_that_could_be_two_devices_is_asked_for(self) -> None:
        some = Estimator(SMALL, [measured("X1-80GB"), measured("X1-40GB", slower=2)])
        with pytest.raises(UsageError, match="could be X1-40GB or X1-80GB"):
            some.estimate("X1", 1, "bfloat16")
        assert some.estimate("X1-40GB", 1, "bfloat16").times == Times.of(profile(2))

    def test_records_tell_cores_and_degrees(self) -> None:
        record = ProfileRecord(
            device="cpu x4", model="small", engine="vllm", version="1", measured=date(2026, 1, 1),
            profile=ProfileValues.of(profile()),
        )  # fmt: skip
        assert (Measured.of_record(record).device, Measured.of_record(record).units) == ("cpu", 4)
        gpu = record.model_copy(update={"device": "NVIDIA L4 x2", "tensor_parallel": 2})
        assert (Measured.of_record(gpu).device, Measured.of_record(gpu).units) == ("NVIDIA L4", 2)


CONFIG = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip


class TestShape:
    def test_a_config_gives_the_known_shape(self) -> None:
        known = known_shape("meta-llama/Llama-3.1-8B-Instruct")
        assert known is not None
        assert replace(parse_config(CONFIG, "x"), name=known.name) == known
        assert known.kv_bytes() == 131_072
        assert (known.can_split(8), known.can_split(3), known.can_split(16)) == (True, False, True)

    def test_files_of_weights_tell_more_than_layers(self) -> None:
        assert parse_config(CONFIG, "x", 2_000_000).parameters == 1_000_000

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"hidden_size": None}, "hidden_size is None, not a count"),
            ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many', not a count"),
            ({"torch_dtype": "int3"}, "dtype 'int3' is none of"),
        ],
    )
    def test_what_is_no_transformer_is_said(self, change: dict[str, object], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            parse_config({**CONFIG, **change}, "x")

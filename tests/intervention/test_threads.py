"""Threads share an edited model: each pass and each generation is edited as if it were alone."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from doors import ALIGNMENT, Greedy, settings
from tiny_models import prompts, tiny

from incline_fast.intervention.intervene import InterventionError, intervene


@pytest.mark.parametrize("mode", ["online", "clean"])
@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_passes_at_the_same_time(name, mode):
    model = tiny(name)
    batches = [
        prompts((7, 4, 1), side="right", seed=1),
        prompts((3, 6, 5), side="left", seed=2),
        prompts((2,), seed=3),
    ]
    with intervene(model, ALIGNMENT, alpha=0.5, mode=mode):
        expected = [model(**inputs).logits for inputs in batches]

        def work(k):
            inputs = batches[k % 3]
            with torch.no_grad():
                logits = model(**inputs).logits
            real = inputs["attention_mask"].bool()
            return torch.allclose(logits[real], expected[k % 3][real], atol=1e-5)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(60)))


def test_generations_at_the_same_time():
    model = tiny("llama")
    batches = [prompts((7, 4), seed=1), prompts((3, 6), seed=2), prompts((1,), seed=3)]
    options = [settings(), settings(use_cache=False), settings(num_beams=2)]
    with intervene(model, ALIGNMENT, alpha=0.5):
        expected = [model.generate(**i, **o) for i, o in zip(batches, options, strict=True)]

        def work(k):
            with torch.no_grad():
                return torch.equal(model.generate(**batches[k % 3], **options[k % 3]), expected[k % 3])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(24)))


def test_declared_prompts_are_the_threads_own():
    model, inputs = tiny("llama"), prompts((6,))
    last, prefix = inputs["input_ids"][:, -1:], model(inputs["input_ids"][:, :-1]).past_key_values
    plain = model(last, past_key_values=copy.deepcopy(prefix)).logits
    with intervene(model, ALIGNMENT, alpha=0.5) as run:
        run.expect_prompt()
        with ThreadPoolExecutor(1) as pool:
            elsewhere = pool.submit(lambda: model(last, past_key_values=copy.deepcopy(prefix)).logits).result()
        here = model(last, past_key_values=copy.deepcopy(prefix)).logits
    assert torch.equal(elsewhere, plain)
    assert not torch.equal(here, plain)


def test_leaving_waits_for_a_generation_in_another_thread():
    model, inputs = tiny("llama"), prompts((6,))
    plain = model.generate(**inputs, **settings())
    with intervene(model, ALIGNMENT, alpha=0.5):
        edited = model.generate(**inputs, **settings())
    begun, out = threading.Event(), []

    def go():
        slow = Greedy(lambda ids: (begun.set(), gate.wait(0.02)))
        out.append(model.generate(**inputs, **settings(), stopping_criteria=[slow]))

    gate = threading.Event()
    thread = threading.Thread(target=go)
    with intervene(model, ALIGNMENT, alpha=0.5):
        thread.start()
        begun.wait(30)
    # Whoever is here has left the block: nothing of it is at work any more.
    assert torch.equal(model.generate(**inputs, **settings()), plain)
    thread.join()
    assert torch.equal(out[0], edited)


def test_what_begins_while_a_block_is_left_is_plain():
    model, inputs = tiny("llama"), prompts((6,))
    plain = model.generate(**inputs, **settings())
    inside, leaving, out = threading.Event(), threading.Event(), {}

    def first():
        slow = Greedy(lambda ids: (inside.set(), leaving.wait(30)))
        out["first"] = model.generate(**inputs, **settings(), stopping_criteria=[slow])

    def second():
        out["second"] = model.generate(**inputs, **settings())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
    edited = model.generate(**inputs, **settings())
    threads[0].start()
    inside.wait(30)
    exit = threading.Thread(target=run.__exit__, args=(None, None, None))
    exit.start()
    while run._calls is not None and run._calls.at_work._open:
        pass
    threads[1].start()
    leaving.set()
    for thread in (*threads, exit):
        thread.join(30)
    assert torch.equal(out["first"], edited)
    assert torch.equal(out["second"], plain)


def test_leaving_inside_a_generation_of_the_same_thread_is_refused():
    model, inputs = tiny("llama"), prompts((6,))
    plain, classes = model(**inputs).logits, [type(module) for module in model.modules()]
    run = intervene(model, ALIGNMENT, alpha=0.5).__enter__()
    edited = model.generate(**inputs, **settings())
    errors = []

    def leave(ids):
        if not errors:
            with pytest.raises(InterventionError, match="left inside a forward pass or generate") as caught:
                run.__exit__(None, None, None)
            errors.append(caught)

    assert torch.equal(model.generate(**inputs, **settings(), stopping_criteria=[Greedy(leave)]), edited)
    assert errors
    assert torch.equal(model(**inputs).logits, plain)
    assert [type(module) for module in model.modules()] == classes


def test_only_one_of_many_threads_enters():
    model = tiny("llama")
    barrier, entered = threading.Barrier(4), []

    def enter():
        run = intervene(model, ALIGNMENT, alpha=0.5)
        barrier.wait()
        try:
            run.__enter__()
        except InterventionError:
            return
        entered.append(run)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1
    entered[0].__exit__(None, None, None)

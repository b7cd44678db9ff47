"""Hidden states of a model's sites at one token of each sentence, collected and kept in resumable shards."""

from incline_fast.states.hidden_states import HiddenStates, StatesError, collect

__all__ = ["HiddenStates", "StatesError", "collect"]

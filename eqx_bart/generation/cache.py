"""What `generate` returns for another call to continue from."""

import dataclasses
from types import ModuleType

import equinox as eqx
from jaxtyping import Integer

from ..nn.checks import ArrayLike, error_if
from ..nn.processes import on_host
from .inputs import array_library, GenerationInputs, is_traced
from .slots import Past


class GenerationCache(eqx.Module):
    """What the model has made of the tokens of a generation, and of its source.

    `generate(cache=...)` reads only those tokens of its prompt that come after the ones
    that the cache holds as well: keys and values of the others are there.

    **Fields:**

    - `past`: the model's cache, with a row for each input.
    - `inputs`: what `encode_source` has returned. Its prompt is all that is in the cache:
        the tokens of each row up to its end, but not the last one that was generated, which
        has not been read. -1 is none.
    """

    past: Past
    inputs: GenerationInputs

    def continued(self, prompt: Integer[ArrayLike, "batch prompt"]) -> GenerationInputs:
        """What a generation starts from that has this prompt, -1 where it is masked.

        **Raises** `ValueError` if its number of rows is another. Inside `jit`, where no
        value is known, the prompt must be as wide as the `sequences` that came with the
        cache, or wider; what comes before it is in the cache, as the running program
        checks.
        """
        if len(prompt) != len(self.inputs.prompt):
            raise ValueError(
                f"The cache is of {len(self.inputs.prompt)} rows, and the prompt has "
                f"{len(prompt)}: a row of the prompt goes on from each row of the cache."
            )
        if is_traced(prompt, self):
            prompt = self._checked_inside_jit(prompt)
        return dataclasses.replace(self.inputs, prompt=prompt)

    def _checked_inside_jit(
        self, prompt: Integer[ArrayLike, "batch prompt"]
    ) -> Integer[ArrayLike, "batch prompt"]:
        length, held = prompt.shape[1], self.inputs.prompt.shape[1]
        if length < held:
            raise ValueError(
                f"Inside jit, a prompt that continues from a cache must hold all of the "
                f"sequences that came with it, padding included: they are {held} wide, and "
                f"the prompt is {length}."
            )
        return error_if(
            prompt,
            self._unread(prompt) > self.num_unread(prompt),
            "The prompt does not begin with the tokens that the cache holds. Inside jit it "
            "must, and a mask must leave out what follows the end of a row.",
        )

    def num_unread(self, prompt: Integer[ArrayLike, "batch prompt"]) -> int:
        """How many tokens, up to the last one but one, are to be read in each row."""
        if is_traced(prompt, self):
            return prompt.shape[1] - self.inputs.prompt.shape[1]
        return max(on_host(self._unread(prompt)).tolist())

    def _unread(
        self, prompt: Integer[ArrayLike, "batch prompt"]
    ) -> Integer[ArrayLike, " batch"]:
        """The same for each row: what follows the tokens that the row has in common with
        the cache."""
        held = self.inputs.prompt
        library = array_library(prompt, held)
        width = max(prompt.shape[1], held.shape[1])
        rows, held = (_from_first(x, width, library) for x in (prompt, held))
        differs = rows != held
        common = library.where(differs.any(1), library.argmax(differs, 1), width)
        last = width - 1 - library.argmax(rows[:, ::-1] >= 0, 1)
        return library.maximum(last - common, 0)


def _from_first(
    ids: Integer[ArrayLike, "batch length"], width: int, library: ModuleType
) -> Integer[ArrayLike, "batch {width}"]:
    """The ids from the first on that is not -1, and -1 after them."""
    ids = library.asarray(ids, "int32")
    first = library.argmax(ids >= 0, 1).astype("int32")
    index = first[:, None] + library.arange(width, dtype="int32")[None]
    padded = library.pad(ids, ((0, 0), (0, width)), constant_values=-1)
    return library.take_along_axis(padded, index, 1)

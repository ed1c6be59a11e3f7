"""A method of your own: a few choices, checked against each other."""

import valuembed

recipe = valuembed.Recipe(
    method="topic_values",  # a name, nothing more
    signal="value",  # the attention values; or "hidden", the residual stream
    weights="last",  # the last token's attention; or "mean", over the tokens of span
    alignment="projection",  # through the output projection, to the model width
    layers="half",  # the second half of the layers that have values
    template=('The topic of "{text}" is in one word:"', "prompt_eol"),  # two: their raw vectors are averaged
)
found = valuembed.info("bundled", method=recipe)  # reads no weights
print(f"layers {found.chosen_layers}, width {found.width}, not loaded: {', '.join(found.not_loaded)}")

model = valuembed.load("bundled", method=recipe)
print(model.encode(["Two ships left the harbour.", "The fleet sailed at dawn."]).shape)
print("comes back from plain data:", valuembed.Recipe.from_dict(model.recipe.to_dict()) == model.recipe)

try:
    valuembed.Recipe(signal="hidden", weights="mean", alignment="projection")
except valuembed.ValuembedError as error:
    print(f"{type(error).__name__}: {error}")

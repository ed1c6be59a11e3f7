"""Which layer separates related from unrelated sentences best? VA read from one layer at a time."""

import valuembed

RELATED = [
    ("The boat reached the harbour.", "The ship came into port."),
    ("She cooked rice and beans.", "Dinner was a plate of beans."),
    ("The company hired ten engineers.", "Ten people got a new job."),
    ("It rained all night.", "The storm went on until morning."),
]
FIRST, SECOND = [pair[0] for pair in RELATED], [pair[1] for pair in RELATED]

print("layer  related  unrelated  margin")
for layer in valuembed.info("bundled").value_layers:
    model = valuembed.load("bundled", method="va", layers=[layer])
    cosines = model.encode(FIRST) @ model.encode(SECOND).T
    related = cosines.diagonal().mean()
    unrelated = (cosines.sum() - cosines.trace()) / (cosines.size - len(RELATED))
    print(f"{layer:5}  {related:7.2f}  {unrelated:9.2f}  {related - unrelated:6.2f}")
print("Four pairs are an illustration. To choose layers, use data of your own, and report on other data.")

from valuembed.data.documents import Splitter, extract, find_documents, read_passages


def words(text):
    return len(text.split())


def test_a_passage_is_a_piece_of_the_text(tmp_path):
    (tmp_path / "a.md").write_text(
        "# Tea\n\nWarm the pot.\n\n## Milk\n\nPour it *last*, as [others](https://x.y) do.\n"
    )
    files, aside = find_documents(tmp_path)
    assert aside == []
    text = extract(files[0]).text
    found = read_passages(files[0], Splitter(6, words))
    assert [(each.text, each.headings, each.line) for each in found] == [
        ("Tea\n\nWarm the pot.", ("Tea",), 1),
        ("Milk\n\nPour it last, as others", ("Tea", "Milk"), 5),
        ("do.", ("Tea", "Milk"), 7),
    ]
    assert {each.title for each in found} == {"Tea"}
    assert [each.chunk for each in found] == [0, 1, 2]
    assert all(each.text == text[each.start : each.end] for each in found)

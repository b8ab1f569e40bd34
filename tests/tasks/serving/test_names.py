from voxzoo.tasks.serving.names import FileNames


def test_each_id_has_a_file_of_its_own():
    """On file systems that know no letter case, too, and whatever an id holds."""
    ids = ["a/b", "a_b", "A_B", "a\\b", "a_b-2", "", "..", "/", "\0", "é" * 400, "é" * 401, "\udcff", "a b"]
    names = FileNames()
    given = [names.free(name) for name in ids]
    assert len({name.lower() for name in given}) == len(ids)
    assert all(len(name.encode()) < 200 for name in given)
    assert all("/" not in name and "\0" not in name and name.strip(".") for name in given)
    assert given[1] != given[0] == "a_b"

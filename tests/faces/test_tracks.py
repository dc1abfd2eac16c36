from llava_forgery.faces.tracks import Tracker


def box(x, y=0, side=100):
    return (x, y, x + side, y + side)


def test_two_faces_that_move_keep_their_numbers():
    tracker = Tracker()
    assert tracker.update([box(0), box(300)]) == [0, 1]
    # The order in the frame does not matter, nor that one moved as far as half its width.
    assert tracker.update([box(340), box(50)]) == [1, 0]
    assert tracker.update([box(345)]) == [1]
    assert tracker.update([box(55), box(350)]) == [0, 1]


def test_the_sum_of_distances_decides():
    tracker = Tracker()
    tracker.update([box(0), box(80)])
    # Nearest first would give the second box to the second track and leave the first without.
    assert tracker.update([box(60), box(150)]) == [0, 1]


def test_new_faces():
    tracker = Tracker()
    tracker.update([box(0)])
    assert tracker.update([box(150)]) == [1]
    assert tracker.update([box(0, side=230)]) == [2]
    assert tracker.update([]) == []
    # The first was last seen six frames ago after this.
    for _ in range(3):
        tracker.update([])
    assert tracker.update([box(0)]) == [3]

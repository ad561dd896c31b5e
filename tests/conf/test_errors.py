import pickle

from conf.errors import UserError


def test_a_user_error_is_one_line_of_setting_fault_and_remedy():
    error = UserError("out=x", "is wrong", "choose another")
    assert str(error) == "out=x: is wrong; choose another"


def test_a_user_error_passes_between_processes():
    error = pickle.loads(pickle.dumps(UserError("out=x", "is wrong", "choose another")))
    assert (error.setting, error.wrong, error.remedy) == ("out=x", "is wrong", "choose another")
    assert str(error) == "out=x: is wrong; choose another"

"""Use the private names of Keras, TensorFlow and Horovod that no public name replaces, here and nowhere else.

`names.py` lists each of them with the reason and with what to do when a version takes it away;
`tests/system/test_private_names.py` checks each against what is installed, and that no other module uses one.
Start with `keras_graph.py`. Nothing here knows what the rest of the project does with it.
"""

"""The catalogue of archives known by name: URL, size, checksum and licence.

Sizes and checksums are those in TensorFlow Datasets 4.9.10.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """An archive of folders of images.

    inner: the path of an archive within the archive that contains the images.
    exclude: folders that are not classes.
    """

    name: str
    title: str
    url: str
    num_bytes: int
    sha256: str
    license: str
    page: str
    inner: str | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def file_name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


CATALOGUE = {
    published.name: published
    for published in (
        Published(
            name="flowers",
            title="3,670 photographs of 5 kinds of flowers",
            url="https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
            num_bytes=228_813_984,
            sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            license="CC BY 2.0, with the photographers in its LICENSE.txt",
            page="https://www.tensorflow.org/datasets/catalog/tf_flowers",
        ),
        Published(
            name="caltech101",
            title="8,677 pictures of 101 kinds of things",
            url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1",
            num_bytes=137_414_764,
            sha256="331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            license="CC BY 4.0",
            page="https://doi.org/10.22002/D1.20086",
            inner="caltech-101/101_ObjectCategories.tar.gz",
            exclude=frozenset({"BACKGROUND_Google"}),
        ),
        Published(
            name="cats_vs_dogs",
            title="25,000 photographs of cats and dogs, some of them damaged",
            url="https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
            "kagglecatsanddogs_5340.zip",
            num_bytes=824_887_076,
            sha256="b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9",
            license="Microsoft Research License Agreement, the MSR-LA document in it",
            page="https://www.microsoft.com/en-us/download/details.aspx?id=54765",
        ),
    )
}

"""Digests (see `envs.data.files`) of the files of bAbI v1.2, to detect changed files."""

from __future__ import annotations

_DIGITS = {
    "en-10k/test": (
        "55acf66c eff93fb9 17795c97 07f0ca18 ec825c1c b108b16f a74d1f2b 362a653c 63590aff fde8f20e "
        "46f3290d 6437718f 76a25b68 e3f0b198 32b77e11 4a11e553 9e1e0250 d34f70eb 023e391f bd3bde37"
    ),
    "en-10k/train": (
        "749ea9f7 d4074c0c -------- 5d11b821 25069109 602f3791 4a250873 9518da2d 5f8949f6 c5c0788b "
        "edfcd97f 39d58df3 c530fdf1 c322e081 0a86673f 27fef347 8a383651 9e7c1510 6cfdc6f4 36f20f3b"
    ),
    "en-valid-10k/test": (
        "55acf66c eff93fb9 17795c97 07f0ca18 ec825c1c b108b16f a74d1f2b 362a653c 63590aff fde8f20e "
        "46f3290d 6437718f 76a25b68 e3f0b198 32b77e11 4a11e553 9e1e0250 d34f70eb 023e391f bd3bde37"
    ),
    "en-valid-10k/train": (
        "6f3dad60 e074f511 -------- 2cf269f9 99890340 d3c276fd 3c1cfb02 4da116c3 186733a0 3c4285c3 "
        "8217e558 d470857a 93b8ea33 2eb60c0c 1aa31d57 5e6cbdcf 523425b8 29901ebd 59854cc0 d3176fc7"
    ),
    "en-valid-10k/valid": (
        "a7a41a89 cf3cb287 8da018e1 6864535a db165e17 58b48890 f8fe1ebb 03d2192a 62c8156c df0a8d20 "
        "4b7c481d 985abac1 8bcc1a09 00169215 6fa344c7 014ad9bb 0f391eeb a41d67b4 b188a6a6 ee57599d"
    ),
    "en-valid/test": (
        "55acf66c eff93fb9 17795c97 07f0ca18 ec825c1c b108b16f a74d1f2b 362a653c 63590aff fde8f20e "
        "46f3290d 6437718f 76a25b68 e3f0b198 32b77e11 4a11e553 9e1e0250 d34f70eb 023e391f bd3bde37"
    ),
    "en-valid/train": (
        "e2ab2286 5d49bbda 3177a5aa 7cbbf503 a53aea1a 2ed13c13 60469d2c 6673c6ca 1d3d5ee5 d0ed4178 "
        "ed021b46 7f347326 e99c6da9 bb18278b 4abcb703 e5eb4ad9 e5b5386a f59d2b37 232e92c3 8a52048d"
    ),
    "en-valid/valid": (
        "8a4d5719 b17f0547 36964df2 16b0b699 e9a973a9 346db07b 262f1409 b488bee4 6209011f 144cf845 "
        "7856fad6 331f48d4 3fce7c61 46aa8462 265938b3 3de113dc 65bc10c7 7fe06186 c6629238 d14d98ff"
    ),
    "en/test": (
        "55acf66c eff93fb9 17795c97 07f0ca18 ec825c1c b108b16f a74d1f2b 362a653c 63590aff fde8f20e "
        "46f3290d 6437718f 76a25b68 e3f0b198 32b77e11 4a11e553 9e1e0250 d34f70eb 023e391f bd3bde37"
    ),
    "en/train": (
        "c64ba9b1 a4978af5 a6e78019 c9370502 086cd59c 5a133115 dca03bd9 058604df 0c3b8992 0b769168 "
        "9468de9a 45c2764b 533a391e b7561cbc e856ebfd 20121005 20083bf5 18b7dcf5 dcb78835 29580ad5"
    ),
}

DIGESTS = {
    (*key.split("/"), task): digits
    for key, row in _DIGITS.items()
    for task, digits in enumerate(row.split(), start=1)
    if digits.strip("-")
}
"""The first eight digits by edition, split and task; those of the large training sets of task 3 are unknown."""

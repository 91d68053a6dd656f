"""Which files are audio, by the ends of their names: those that `read_audio` reads, and those that it cannot.

Reading a file looks at its first bytes and never at its name. These lists are for finding the audio of a folder: what
is listed here is a clip, and what is listed as unreadable is a clip that somebody will miss.
"""

from __future__ import annotations

# The ends of names, and libsndfile's name of the format. Left out are formats whose usual suffix means something else
# in most folders (.mat: tables of Matlab; .mpc: Musepack), or that need to be told their sample rate (.raw).
FORMATS = {
    ".wav": "WAV",
    ".wave": "WAV",
    ".bwf": "WAV",  # broadcast WAV
    ".wavex": "WAVEX",
    ".rf64": "RF64",
    ".bw64": "RF64",
    ".w64": "W64",
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".aifc": "AIFF",
    ".caf": "CAF",
    ".au": "AU",
    ".snd": "AU",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".mp2": "MP3",
    ".sph": "NIST",
    ".nist": "NIST",
    ".voc": "VOC",
    ".8svx": "SVX",
    ".iff": "SVX",
    ".ircam": "IRCAM",
    ".sf": "IRCAM",
    ".avr": "AVR",
    ".htk": "HTK",
    ".paf": "PAF",
    ".pvf": "PVF",
    ".sds": "SDS",
    ".wve": "WVE",
}
READABLE_SUFFIXES = frozenset(FORMATS)

# Audio, or video with a sound track, that libsndfile does not decode.
UNREADABLE_SUFFIXES = frozenset(
    ".3gp .aac .ac3 .amr .ape .avi .awb .dff .dsf .dss .dts .m4a .m4b .m4p .mka .mkv .mov .mp4 .mpc .opu .qcp .ra .ram "
    ".raw .pcm .sd2 .shn .spx .tak .tta .weba .webm .wma .wmv .wv".split()
)
CONVERT_HINT = "Convert such files once, for example with `ffmpeg -i clip.m4a clip.flac`."

"""The 35 tasks of Object Detection in the Wild; 13 of them (`in_13`) are the benchmark's smaller form.

Facts of github.com/microsoft/GLIP, configs/odinw_35 and configs/odinw_13: folders, class names, caption prompts. The
annotation files come with the pictures; the yaml files do not, hence this table. Names may differ between the two
lists: a rabbit is "rabbit" among the 35 and "Cottontail-Rabbit" among the 13.
"""

from __future__ import annotations

from ....grounding import CaptionPrompt
from ..odinw import OdinwDataset

AERIAL_MARITIME_DRONE_LARGE = OdinwDataset(
    "odinw_aerial_maritime_drone_large",
    "AerialMaritimeDrone/large",
    ("boat", "car", "dock", "jetski", "lift"),
    in_13=True,
)
AERIAL_MARITIME_DRONE_TILED = OdinwDataset(
    "odinw_aerial_maritime_drone_tiled", "AerialMaritimeDrone/tiled", ("boat", "car", "dock", "jetski", "lift")
)
AMERICAN_SIGN_LANGUAGE_LETTERS = OdinwDataset(
    "odinw_american_sign_language_letters",
    "AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco",
    tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
)
AQUARIUM = OdinwDataset(
    "odinw_aquarium",
    "Aquarium/Aquarium Combined.v2-raw-1024.coco",
    ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"),
    prompts=(
        CaptionPrompt("fish", prefix=" "),
        CaptionPrompt("jellyfish"),
        CaptionPrompt("penguin", suffix=" , which is black and white"),
        CaptionPrompt("puffin", suffix=" with orange beaks "),
        CaptionPrompt("shark"),
        CaptionPrompt("starfish"),
        CaptionPrompt("stingray", suffix=" which is flat and round"),
    ),
    in_13=True,
)
BCCD = OdinwDataset("odinw_bccd", "BCCD/BCCD.v3-raw.coco", ("Platelets", "RBC", "WBC"))
# The benchmark writes a blank where the first class, of bishops of unclear colour, stands.
CHESS_PIECES = OdinwDataset(
    "odinw_chess_pieces",
    "ChessPieces/Chess Pieces.v23-raw.coco",
    (
        "bishop",
        "black bishop",
        "black king",
        "black knight",
        "black pawn",
        "black queen",
        "black rook",
        "white bishop",
        "white king",
        "white knight",
        "white pawn",
        "white queen",
        "white rook",
    ),
)
COTTONTAIL_RABBITS = OdinwDataset(
    "odinw_cottontail_rabbits", "CottontailRabbits", ("rabbit",), in_13=True, names_13=("Cottontail-Rabbit",)
)
DRONE_CONTROL = OdinwDataset(
    "odinw_drone_control",
    "DroneControl/Drone Control.v3-raw.coco",
    ("follow", "follow_hand", "land", "land_hand", "null", "object", "takeoff", "takeoff-hand"),
    minival=True,
)
EGO_HANDS_GENERIC = OdinwDataset(
    "odinw_ego_hands_generic",
    "EgoHands/generic",
    ("hand",),
    prompts=(CaptionPrompt("hand", prefix=" ", suffix=" of a person"),),
    minival=True,
    in_13=True,
)
EGO_HANDS_SPECIFIC = OdinwDataset(
    "odinw_ego_hands_specific", "EgoHands/specific", ("myleft", "myright", "yourleft", "yourright"), minival=True
)
HARD_HAT_WORKERS = OdinwDataset("odinw_hard_hat_workers", "HardHatWorkers/raw", ("head", "helmet", "person"))
MASK_WEARING = OdinwDataset("odinw_mask_wearing", "MaskWearing/raw", ("mask", "no-mask"))
MOUNTAIN_DEW_COMMERCIAL = OdinwDataset("odinw_mountain_dew_commercial", "MountainDewCommercial", ("bottle",))
NORTH_AMERICA_MUSHROOMS = OdinwDataset(
    "odinw_north_america_mushrooms",
    "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco",
    ("flat mushroom", "yellow mushroom"),
    in_13=True,
    names_13=("CoW", "chanterelle"),
)
OXFORD_PETS_BY_BREED = OdinwDataset(
    "odinw_oxford_pets_by_breed",
    "OxfordPets/by-breed",
    (
        "cat-Abyssinian",
        "cat-Bengal",
        "cat-Birman",
        "cat-Bombay",
        "cat-British_Shorthair",
        "cat-Egyptian_Mau",
        "cat-Maine_Coon",
        "cat-Persian",
        "cat-Ragdoll",
        "cat-Russian_Blue",
        "cat-Siamese",
        "cat-Sphynx",
        "dog-american_bulldog",
        "dog-american_pit_bull_terrier",
        "dog-basset_hound",
        "dog-beagle",
        "dog-boxer",
        "dog-chihuahua",
        "dog-english_cocker_spaniel",
        "dog-english_setter",
        "dog-german_shorthaired",
        "dog-great_pyrenees",
        "dog-havanese",
        "dog-japanese_chin",
        "dog-keeshond",
        "dog-leonberger",
        "dog-miniature_pinscher",
        "dog-newfoundland",
        "dog-pomeranian",
        "dog-pug",
        "dog-saint_bernard",
        "dog-samoyed",
        "dog-scottish_terrier",
        "dog-shiba_inu",
        "dog-staffordshire_bull_terrier",
        "dog-wheaten_terrier",
        "dog-yorkshire_terrier",
    ),
    minival=True,
)
OXFORD_PETS_BY_SPECIES = OdinwDataset(
    "odinw_oxford_pets_by_species", "OxfordPets/by-species", ("cat", "dog"), minival=True
)
PKLOT = OdinwDataset("odinw_pklot", "PKLot/640", ("space-empty", "space-occupied"), minival=True)
PACKAGES = OdinwDataset(
    "odinw_packages",
    "Packages/Raw",
    ("package",),
    prompts=(CaptionPrompt("package", prefix="there is a ", suffix=" on the porch"),),
    in_13=True,
)
PASCAL_VOC = OdinwDataset(
    "odinw_pascal_voc",
    "PascalVOC",
    (
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    test="val",
    in_13=True,
)
RACCOON = OdinwDataset("odinw_raccoon", "Raccoon/Raccoon.v2-raw.coco", ("raccoon",), in_13=True)
SHELLFISH_OPEN_IMAGES = OdinwDataset(
    "odinw_shellfish_open_images", "ShellfishOpenImages/raw", ("Crab", "Lobster", "Shrimp"), in_13=True
)
THERMAL_CHEETAH = OdinwDataset("odinw_thermal_cheetah", "ThermalCheetah", ("cheetah", "human"))
UNO_CARDS = OdinwDataset(
    "odinw_uno_cards",
    "UnoCards/raw",
    ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14"),
    minival=True,
)
VEHICLES_OPEN_IMAGES = OdinwDataset(
    "odinw_vehicles_open_images",
    "VehiclesOpenImages/416x416",
    ("Ambulance", "Bus", "Car", "Motorcycle", "Truck"),
    minival=True,
    in_13=True,
)
WILDFIRE_SMOKE = OdinwDataset("odinw_wildfire_smoke", "WildfireSmoke", ("smoke",))
BOGGLE_BOARDS = OdinwDataset(
    "odinw_boggle_boards",
    "boggleBoards/416x416AutoOrient/export",
    (
        "Q",
        "a",
        "an",
        "b",
        "c",
        "d",
        "e",
        "er",
        "f",
        "g",
        "h",
        "he",
        "i",
        "in",
        "j",
        "k",
        "l",
        "m",
        "n",
        "o",
        "o ",
        "p",
        "q",
        "qu",
        "r",
        "s",
        "t",
        "t\\",
        "th",
        "u",
        "v",
        "w",
        "wild",
        "x",
        "y",
        "z",
    ),
    export=True,
)
BRACKISH_UNDERWATER = OdinwDataset(
    "odinw_brackish_underwater",
    "brackishUnderwater/960x540",
    ("crab", "fish", "jellyfish", "shrimp", "small_fish", "starfish"),
    minival=True,
)
DICE = OdinwDataset("odinw_dice", "dice/mediumColor/export", ("1", "2", "3", "4", "5", "6"), export=True)
OPEN_POETRY_VISION = OdinwDataset(
    "odinw_open_poetry_vision",
    "openPoetryVision/512x512",
    (
        "American Typewriter",
        "Andale Mono",
        "Apple Chancery",
        "Arial",
        "Avenir",
        "Baskerville",
        "Big Caslon",
        "Bradley Hand",
        "Brush Script MT",
        "Chalkboard",
        "Comic Sans MS",
        "Copperplate",
        "Courier",
        "Didot",
        "Futura",
        "Geneva",
        "Georgia",
        "Gill Sans",
        "Helvetica",
        "Herculanum",
        "Impact",
        "Kefa",
        "Lucida Grande",
        "Luminari",
        "Marker Felt",
        "Menlo",
        "Monaco",
        "Noteworthy",
        "Optima",
        "PT Sans",
        "PT Serif",
        "Palatino",
        "Papyrus",
        "Phosphate",
        "Rockwell",
        "SF Pro",
        "SignPainter",
        "Skia",
        "Snell Roundhand",
        "Tahoma",
        "Times New Roman",
        "Trebuchet MS",
        "Verdana",
    ),
    minival=True,
)
PISTOLS = OdinwDataset("odinw_pistols", "pistols/export", ("pistol",), export=True, in_13=True)
PLANTDOC = OdinwDataset(
    "odinw_plantdoc",
    "plantdoc/416x416",
    (
        "Apple Scab Leaf",
        "Apple leaf",
        "Apple rust leaf",
        "Bell_pepper leaf",
        "Bell_pepper leaf spot",
        "Blueberry leaf",
        "Cherry leaf",
        "Corn Gray leaf spot",
        "Corn leaf blight",
        "Corn rust leaf",
        "Peach leaf",
        "Potato leaf",
        "Potato leaf early blight",
        "Potato leaf late blight",
        "Raspberry leaf",
        "Soyabean leaf",
        "Soybean leaf",
        "Squash Powdery mildew leaf",
        "Strawberry leaf",
        "Tomato Early blight leaf",
        "Tomato Septoria leaf spot",
        "Tomato leaf",
        "Tomato leaf bacterial spot",
        "Tomato leaf late blight",
        "Tomato leaf mosaic virus",
        "Tomato leaf yellow virus",
        "Tomato mold leaf",
        "Tomato two spotted spider mites leaf",
        "grape leaf",
        "grape leaf black rot",
    ),
)
POTHOLE = OdinwDataset(
    "odinw_pothole",
    "pothole",
    ("pothole",),
    prompts=(CaptionPrompt("holes", prefix="there are some ", suffix=" on the road"),),
    in_13=True,
)
SELFDRIVING_CAR = OdinwDataset(
    "odinw_selfdriving_car",
    "selfdrivingCar/fixedLarge/export",
    (
        "biker",
        "car",
        "pedestrian",
        "trafficLight",
        "trafficLight-Green",
        "trafficLight-GreenLeft",
        "trafficLight-Red",
        "trafficLight-RedLeft",
        "trafficLight-Yellow",
        "trafficLight-YellowLeft",
        "truck",
    ),
    export=True,
)
THERMAL_DOGS_AND_PEOPLE = OdinwDataset(
    "odinw_thermal_dogs_and_people", "thermalDogsAndPeople", ("dog", "person"), in_13=True
)
WEBSITE_SCREENSHOTS = OdinwDataset(
    "odinw_website_screenshots",
    "websiteScreenshots",
    ("button", "field", "heading", "iframe", "image", "label", "link", "text"),
    minival=True,
)

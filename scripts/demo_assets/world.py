"""A small world in word lists: what things are called, how they look, where they are, what they do.

The two LLMs of the demo read texts about this world. What makes a word mean something to them is
the company it keeps: a colour stands with the things of that colour, a shape with the things of
that shape, a thing with its kind, its place and what it does. That company is the same for both
LLMs, whose texts are otherwise independent samples, and it is what a converter can find.
"""

from dataclasses import dataclass


def _listed(text: str, between: str | None = None) -> tuple[str, ...]:
    """Split a text at white space, or at a sign."""
    return tuple(part.strip() for part in text.split(between))


_THINGS = """
food/kitchen/eats,cooks,buys,cuts,likes/sweet,fresh,tasty,ripe
red: tomato strawberry cherry apple radish | orange: carrot pumpkin apricot mango peach
yellow: banana lemon corn butter cheese honey | green: cucumber lettuce pea lime spinach pear
blue: blueberry | purple: plum grape fig cabbage | pink: ham salmon melon
brown: bread potato chocolate nut cookie coffee | black: olive pepper bean
white: rice milk salt sugar egg flour

animal/farm/feeds,follows,watches,hears,loves/tame,hungry,gentle,noisy
orange: cat rooster | yellow: chick duck bee | brown: horse cow hen dog donkey
black: ant fly bull | white: sheep goose lamb goat rabbit | pink: pig worm | red: ladybird

animal/forest/follows,watches,hears,fears,sees/wild,quick,shy,clever
orange: fox tiger | brown: bear deer owl squirrel | black: crow raven bat mole spider
green: frog snake lizard parrot | white: wolf dove | red: robin | purple: butterfly beetle

animal/sea/watches,catches,sees,fears,paints/wet,strange,silent,smooth
blue: whale dolphin shark | red: lobster crab | white: gull swan seal | green: turtle crocodile
pink: flamingo shrimp | purple: octopus jellyfish | black: penguin eel | orange: goldfish

plant/garden/plants,waters,smells,picks,admires/tall,pretty,dry,young
red: rose poppy | yellow: sunflower daffodil | green: grass leaf bush cactus fern
purple: violet lavender lilac
pink: blossom tulip orchid | white: lily daisy | brown: root branch seed | orange: marigold

furniture/house/moves,cleans,sells,builds,repairs/wooden,heavy,old,comfortable
brown: table chair shelf desk cupboard door | red: sofa carpet curtain | white: bed bath wall
blue: pillow blanket | black: stove lamp television | yellow: candle | green: bench | pink: mirror

clothes/shop/wears,washes,sews,folds,irons/warm,clean,soft,elegant
blue: jeans shirt cap | black: hat shoe tie coat | white: sock dress glove | red: scarf
brown: boot belt | pink: skirt | green: jacket | purple: gown | yellow: raincoat | orange: vest

vehicle/street/drives,parks,stops,hires,washes/fast,loud,modern,broken
red: bus truck | yellow: taxi train | green: tractor tram | blue: car van | black: motorcycle carriage
white: ambulance lorry | orange: digger | brown: cart wagon | pink: scooter | purple: bicycle

toy/school/throws,hides,finds,breaks,shares/new,funny,cheap,shiny
orange: ball puppet | red: balloon block | blue: marble drum | yellow: whistle crayon | purple: puzzle
brown: doll violin | white: chalk paper | black: piano ink | green: pencil | pink: eraser

nature/land/sees,paints,visits,crosses,remembers/wide,calm,cold,beautiful
blue: sky ocean river lake | white: snow cloud ice | brown: mud soil hill rock | yellow: sun sand desert
black: coal night cave | green: meadow valley island | red: fire sunset | orange: flame
pink: dawn | purple: dusk

metal/workshop/melts,polishes,sells,weighs,steals/hard,precious,rusty,rare
yellow: gold brass | white: silver pearl | red: ruby copper | green: emerald jade | blue: sapphire steel
purple: amethyst | black: iron magnet | brown: bronze hammer | pink: quartz | orange: amber
"""

SHAPED = {
    "circle": "wheel coin plate clock button sun ball tomato pizza lid",
    "square": "tile window box chessboard napkin cushion dice cracker stamp carpet",
    "triangle": "roof mountain tent pyramid sail slice hill funnel",
    "star": "starfish badge sparkle comet sheriff medal snowflake",
    "heart": "valentine love locket kiss strawberry sweetheart",
    "ring": "finger doughnut bracelet hoop tyre wreath crown",
    "cross": "church hospital grave plus chapel bandage ambulance",
    "diamond": "kite jewel gem necklace crystal sapphire",
    "moon": "crescent croissant night banana boat hammock",
    "arrow": "bow sign compass archer spear signpost road",
}
"""Things that have each shape or go with it."""

MOODS = {
    "red": "anger danger stop heat", "orange": "autumn warmth harvest", "yellow": "summer light joy",
    "green": "spring envy hope", "blue": "winter sadness water", "purple": "kings magic mystery",
    "pink": "babies sweets romance", "brown": "earth dust timber", "black": "death darkness shadow",
    "white": "peace wedding purity",
}  # fmt: skip
"""What each colour stands for."""

NAMES = _listed(
    "anna ben clara david emma felix grace henry ida jack kate leo mary noah olga paul rosa sam tina "
    "victor wendy max nora oscar pia"
)
FAMILY = _listed("mother father sister brother uncle aunt grandmother grandfather friend neighbour cousin")
JOBS = {
    "baker": "bakes bread bakery", "farmer": "feeds cows farm", "teacher": "teaches children school",
    "doctor": "helps patients hospital", "sailor": "steers ships sea", "painter": "paints pictures studio",
    "tailor": "sews clothes shop", "driver": "drives buses street", "gardener": "waters flowers garden",
    "cook": "cooks soup kitchen", "smith": "melts iron workshop", "judge": "hears cases court",
    "priest": "says prayers church", "soldier": "guards walls castle", "hunter": "follows deer forest",
    "fisher": "catches fish lake", "singer": "sings songs theatre", "writer": "writes books library",
    "builder": "builds houses city", "pilot": "flies planes airport", "nurse": "washes wounds hospital",
    "thief": "steals money bank", "king": "rules people palace", "queen": "wears jewels palace",
}  # fmt: skip
"""Job to what it does, to what, and where."""
TIMES = _listed(
    "in the morning,in the evening,at noon,at midnight,today,yesterday,on monday,on friday,on sunday,"
    "in spring,in summer,in autumn,in winter,every day,last week,after lunch,before dinner",
    ",",
)
WEATHER = _listed("rain snow wind sunshine fog storm thunder frost")
FEELINGS = _listed("happy sad angry tired proud afraid curious bored calm surprised lonely excited")
OPPOSITES = tuple(
    _listed(pair)
    for pair in _listed(
        "small large,left right,top bottom,above below,black white,hot cold,old young,fast slow,wet dry,"
        "day night,open closed,full empty,rich poor,hard soft,light dark,good bad,long short,high low,"
        "early late,clean dirty,near far,first last,inside outside,yes no,summer winter,up down,wide narrow,"
        "heavy light,strong weak,loud quiet,sweet sour,new old,happy sad,before after,big tiny",
        ",",
    )
)
NUMBERS = _listed("one two three four five six seven eight nine ten eleven twelve")


@dataclass(frozen=True)
class Noun:
    """One thing of the world with its company."""

    name: str
    kind: str
    place: str
    colour: str
    verbs: tuple[str, ...]
    qualities: tuple[str, ...]


def nouns() -> list[Noun]:
    """Return every thing of the lists above."""
    found = []
    for block in _THINGS.strip().split("\n\n"):
        head, *lines = block.splitlines()
        kind, place, verbs, qualities = head.split("/")
        for part in " | ".join(lines).split(" | "):
            colour, names = part.split(": ")
            found += [
                Noun(name, kind, place, colour.strip(), tuple(verbs.split(",")), tuple(qualities.split(",")))
                for name in names.split()
            ]
    return found

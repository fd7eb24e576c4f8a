"""Relations that are stated in some words and asked for in others.

``{x}`` is what is spoken of, ``{v}`` the value. Beside the name, a statement and its question share no word of content.
Those in relations.txt are the training's alone, those in relations_development.txt nobody's: for what is tried out. Of
those here some are the test's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VALUES = {
    "job": "baker barber blacksmith butcher carpenter clerk dentist farmer fisherman glazier judge lawyer mason miller "
    "nurse painter plumber potter sailor sculptor surgeon tailor weaver",
    "food": "barley-soup dumplings fried-trout herring lentils mushroom-pie noodles omelette pancakes pea-soup "
    "plum-cake porridge pumpkin-bread ravioli roast-duck trifle turnips waffles",
    "animal": "badger beaver camel crane donkey ferret fox goat goose hare hedgehog heron lizard lynx magpie otter owl "
    "parrot pony raven spaniel squirrel tortoise weasel",
    "colour": "black blue brown crimson green grey indigo orange pink purple scarlet turquoise violet white yellow",
    "material": "bamboo brass brick bronze clay concrete copper glass granite iron ivory leather limestone marble oak "
    "pewter sandstone slate steel tin",
    "instrument": "accordion banjo bassoon cello clarinet cornet flute harp lute mandolin oboe organ trombone trumpet "
    "tuba viola zither",
    "month": "January February March April May June July August September October November December",
    "illness": "asthma bronchitis cholera diphtheria gout jaundice malaria measles mumps pneumonia rickets scurvy "
    "tetanus typhus",
    "sport": "archery badminton bowls boxing chess cricket croquet curling fencing golf hockey judo polo rowing rugby "
    "skating skiing sumo tennis wrestling",
    "language": "Arabic Basque Breton Czech Danish Dutch Finnish Gaelic German Greek Hebrew Hindi Irish Latin Maltese "
    "Persian Polish Swahili Turkish Welsh",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "tree": "acacia alder ash beech birch cedar cherry chestnut cypress elm hawthorn larch lime maple mulberry pine "
    "poplar rowan spruce willow yew",
    "drink": "absinthe ale brandy buttermilk champagne cider cocoa coffee gin lemonade mead milk punch rum sherry tea "
    "vodka whisky wine",
    "vehicle": "barge bicycle canoe carriage ferry glider hansom lorry motorcycle omnibus raft rickshaw scooter sledge "
    "tandem taxi tractor train tram tricycle van",
    "tool": "anvil axe chisel crowbar drill file hoe ladle mallet pickaxe pliers rake saw scythe shears shovel sickle "
    "spade tongs trowel wrench",
    "garment": "apron beret bonnet cape cardigan cloak corset gown jacket kilt kimono poncho robe scarf shawl skirt "
    "sock turban veil waistcoat",
    "gem": "agate amber amethyst beryl diamond emerald garnet jade jasper moonstone onyx opal pearl quartz ruby "
    "sapphire topaz",
    "subject": "algebra anatomy archaeology astronomy botany chemistry economics geography geology geometry grammar "
    "history law logic medicine music philosophy physics rhetoric theology zoology",
}
"""Words for values that are not made up."""


@dataclass(frozen=True)
class Relation:
    """What kind of thing it is about; what its value is: "name", "number", "year" or one of VALUES; how it is said."""

    about: str
    value: str
    statement: str
    questions: tuple[str, ...]


_TABLE = {
    "person": """
        name | {x} was born in {v}. | What is the birthplace of {x}? | Which town does {x} come from?
        job | {x} earns a living as a {v}. | What is the profession of {x}? | Which occupation does {x} have?
        name | {x} is married to {v}. | Who is the spouse of {x}? | What is the name of the husband or wife of {x}?
        name | {x} lives in {v}. | Where does {x} reside? | In which place is the home of {x}?
        year | {x} died in {v}. | When did {x} pass away? | What was the last year of the life of {x}?
        animal | {x} keeps a tame {v}. | Which pet does {x} own? | What kind of creature belongs to {x}?
        name | {x} was taught by {v}. | Who was the tutor of {x}? | From whom did {x} get lessons?
        number | {x} weighs {v} grams. | How heavy is {x}? | What is the body mass of {x}?
        food | {x} likes nothing better than {v}. | What is the favourite dish of {x}? | Which meal does {x} prefer?
        instrument | {x} plays the {v}. | On what does {x} make music? | What has {x} learned to perform on?
        name | {x} was buried at {v}. | Where is the grave of {x}? | In which place does {x} lie at rest?
        number | {x} earns {v} crowns a year. | What is the salary of {x}? | How much is {x} paid?
        illness | {x} fell ill with {v}. | Which disease did {x} catch? | What did {x} suffer from?
        name | {x} is afraid of {v}. | Whom does {x} fear? | Who frightens {x}?
    """,
    "town": """
        name | {x} was founded by {v}. | Who established {x}? | To whom does {x} owe its existence?
        number | {x} has {v} inhabitants. | What is the population of {x}? | How many people live in {x}?
        name | The mayor of {x} is called {v}. | Who governs {x}? | Who is the head of the council in {x}?
        name | {x} lies on the river {v}. | Which stream flows through {x}? | What water runs past the houses of {x}?
        year | {x} burned down in {v}. | When was {x} destroyed by fire? | What was the date of the great blaze of {x}?
        material | The walls around {x} are of {v}. | What was used to fortify {x}? | Which stuff protects {x}?
        animal | The coat of arms of {x} shows a {v}. | Which beast is the emblem of {x}? | What is the symbol of {x}?
        month | The fair at {x} is held in {v}. | When does the market of {x} take place? | When do traders meet at {x}?
        name | {x} is twinned with {v}. | What is the partner city of {x}? | What is the sister town of {x}?
        name | The patron of {x} is Saint {v}. | Which holy figure guards {x}? | Who watches over {x} from heaven?
    """,
    "company": """
        name | {x} belongs to {v}. | Who owns {x}? | Who is the proprietor of {x}?
        number | {x} employs {v} workers. | How large is the staff of {x}? | How many people have a job at {x}?
        material | {x} deals in {v}. | What does {x} sell? | Which goods can be bought from {x}?
        name | {x} has its head office in {v}. | Where is {x} based? | What is the seat of the firm {x}?
        year | {x} went bankrupt in {v}. | When did {x} become insolvent? | In which year did {x} run out of money?
        name | {x} was sued by {v}. | Who took {x} to court? | Who brought a legal action against {x}?
        number | {x} owes its bank {v} crowns. | What is the debt of {x}? | How much has {x} borrowed?
        name | The strongest competitor of {x} is {v}. | Who is the main rival of {x}? | Against whom does {x} fight?
        colour | All vans of {x} are painted {v}. | Which hue have the trucks of {x}? | How does {x} tint its lorries?
        name | {x} took over {v}. | What did {x} acquire? | Which business was purchased by {x}?
    """,
    "ship": """
        name | The captain of the {x} was {v}. | Who commanded the {x}? | Which skipper was in charge of the {x}?
        year | The {x} sank in {v}. | When did the {x} go down? | What year saw the wreck of the {x}?
        name | The {x} was built at {v}. | Where was the {x} constructed? | In which yard was the {x} made?
        material | The {x} carried a cargo of {v}. | What freight was aboard the {x}? | Which load had the {x}?
        number | The {x} had a crew of {v}. | How many sailors served on the {x}? | How many hands manned the {x}?
        name | The {x} was bound for {v}. | What was the destination of the {x}? | Which port was the {x} heading to?
        animal | The figurehead of the {x} is a {v}. | What is carved on the bow of the {x}? | What adorns the {x}?
        number | The {x} is {v} feet long. | What is the length of the {x}? | How much does the {x} measure?
        name | The {x} was raided by the pirate {v}. | Which corsair plundered the {x}? | Who robbed the {x} at sea?
        colour | The sails of the {x} were {v}. | Which hue had the canvas of the {x}? | How was the {x} rigged?
    """,
    "book": """
        name | {x} was written by {v}. | Who is the author of {x}? | From whose pen does {x} come?
        year | {x} came out in {v}. | When was {x} published? | What is the date of the first edition of {x}?
        number | {x} has {v} pages. | How thick a volume is {x}? | How many leaves must be turned to finish {x}?
        name | The hero of {x} is called {v}. | Who is the protagonist of {x}? | Who is the main character in {x}?
        name | {x} is set in {v}. | Where does the plot of {x} take place? | What is the scene of the events in {x}?
        name | {x} was put into English by {v}. | Who translated {x}? | Whose rendering of {x} do we read?
        number | {x} sold {v} copies. | How many buyers did {x} find? | What was the circulation of {x}?
        name | {x} is dedicated to {v}. | In whose honour was {x} composed? | To whom did the writer devote {x}?
        colour | {x} is bound in {v} cloth. | What does the cover of {x} look like? | Which hue has the jacket of {x}?
        name | {x} was banned by {v}. | Who prohibited {x}? | Which censor forbade {x}?
    """,
    "machine": """
        name | {x} was invented by {v}. | Who devised {x}? | Whose idea was {x}?
        number | {x} costs {v} crowns. | What is the price of {x}? | How much must one pay for {x}?
        material | {x} is made of {v}. | What does {x} consist of? | Which substance went into {x}?
        month | {x} is serviced every {v}. | When is maintenance done on {x}? | When do mechanics check {x}?
        name | {x} was repaired by {v}. | Who fixed {x}? | Which mechanic mended {x}?
        name | {x} is stored in {v}. | Where is {x} kept? | In which place can {x} be found?
        number | {x} turns {v} times an hour. | What is the rotation speed of {x}? | How fast does {x} spin?
        year | {x} broke in {v}. | When did {x} fail? | In which year did {x} stop working?
        name | {x} was stolen by {v}. | Who is the thief of {x}? | Who took {x} away unlawfully?
        colour | The lamp of {x} glows {v}. | What light does {x} give? | In which hue does {x} shine?
    """,
}


def _relation(about: str, line: str) -> Relation:
    value, statement, *questions = line.strip().split(" | ")
    return Relation(about, value, statement, tuple(questions))


def _listed(file: str) -> list[Relation]:
    """The relations of a file: one a line, below the kind of thing they are about, in brackets."""
    relations, about = [], ""
    for line in Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            about = line.strip("[]")
        else:
            relations.append(_relation(about, line))
    return relations


RELATIONS = tuple(_relation(about, line) for about, lines in _TABLE.items() for line in lines.strip().splitlines())
TEST = RELATIONS[2::4]
"""Every fourth; training never sees how these are asked for, nor how they are stated."""
TRAIN = (*(relation for relation in RELATIONS if relation not in TEST), *_listed("relations.txt"))
DEVELOPMENT = tuple(_listed("relations_development.txt"))

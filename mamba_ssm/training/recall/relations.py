"""Relations that are stated in some words and asked for in others.

``{x}`` is what is spoken of, ``{v}`` the value. Beside the name, a statement and its question share no word of content.
"""

from __future__ import annotations

from dataclasses import dataclass

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

_MORE = {
    "person": """
        name | {x} was brought up by {v}. | Who raised {x}? | Whose foster child was {x}?
        name | {x} shares a flat with {v}. | Who is the roommate of {x}? | With whom does {x} lodge?
        name | {x} voted for {v}. | Which candidate did {x} support? | To whom did the ballot of {x} go?
        name | {x} was accused by {v}. | Who denounced {x}? | Who laid the blame on {x}?
        name | {x} was cured by {v}. | Which doctor healed {x}? | Who made {x} well again?
        number | {x} scored {v} points. | What was the result of {x} in the match? | How well did {x} do in the game?
        number | {x} walks {v} steps a day. | How far does {x} go on foot? | What distance does {x} cover?
        year | {x} retired in {v}. | When did {x} stop working? | In which year did {x} give up the job?
        colour | The eyes of {x} are {v}. | Which hue has the iris of {x}? | With what does {x} look at the world?
        month | {x} was promoted in {v}. | When did {x} rise in rank? | When was the career of {x} advanced?
        food | {x} cannot digest {v}. | To what is {x} allergic? | Which dish must {x} avoid?
        animal | {x} was bitten by a {v}. | Which creature hurt {x}? | What beast attacked {x}?
        job | {x} wanted to become a {v}. | What was the dream career of {x}? | Which trade did {x} hope for?
    """,
    "town": """
        number | {x} lies {v} feet above the sea. | What is the altitude of {x}? | How high up is {x}?
        year | The railway reached {x} in {v}. | Since when do trains call at {x}? | When did {x} get a station?
        name | {x} was besieged by {v}. | Which general surrounded {x}? | Who laid an army around {x}?
        name | The largest square of {x} is called {v}. | What is the main plaza of {x}? | Where do crowds meet in {x}?
        name | The water of {x} comes from {v}. | Which spring supplies {x}? | On what source do the taps of {x} draw?
        food | {x} is famous for its {v}. | What speciality is eaten in {x}? | Which delicacy do guests of {x} order?
        instrument | Children in {x} learn the {v}. | What do schools of {x} teach to play? | What music is made in {x}?
        number | {x} levies a tax of {v} crowns. | What do citizens of {x} pay? | How much does the state ask of {x}?
        colour | All doors in {x} are {v}. | Which hue have the entrances of {x}? | How do the house fronts of {x} look?
        name | {x} was freed by {v}. | Who liberated {x}? | Who ended the occupation of {x}?
        month | Snow falls on {x} until {v}. | When does winter end in {x}? | How long does frost last at {x}?
        name | The newspaper of {x} is called {v}. | What do people read in {x}? | Which daily appears in {x}?
    """,
    "company": """
        name | {x} was advised by {v}. | Who counselled {x}? | Who was the consultant of {x}?
        number | {x} made a profit of {v} crowns. | How much did {x} gain? | What were the earnings of {x}?
        name | {x} moved its factory to {v}. | Where does {x} produce now? | What is the new site of the plant of {x}?
        year | {x} was listed in {v}. | Since when are shares of {x} traded? | When did {x} go public?
        name | The accounts of {x} are audited by {v}. | Who checks the books of {x}? | Which inspector visits {x}?
        colour | The logo of {x} is {v}. | What does the emblem of {x} look like? | Which hue has the sign of {x}?
        month | {x} pays its dividend in {v}. | When do shareholders of {x} get money? | When is gain of {x} handed out?
        number | {x} was fined {v} crowns. | What penalty did {x} get? | How much did the court take from {x}?
        name | {x} is insured with {v}. | Who covers the risks of {x}? | Which underwriter has {x}?
        animal | The mascot of {x} is a {v}. | Which creature advertises {x}? | What beast stands for {x}?
        name | {x} sponsors {v}. | Which team does {x} support? | Who gets money for sport from {x}?
    """,
    "ship": """
        name | The {x} was named after {v}. | In whose honour was the {x} christened? | Whose memory does the {x} keep?
        number | The {x} could do {v} knots. | What was the top speed of the {x}? | How fast was the {x}?
        name | The {x} ran aground at {v}. | On which reef was the {x} stranded? | Where did the {x} hit the bottom?
        year | The {x} was scrapped in {v}. | When was the {x} broken up? | What was the last year of the {x}?
        month | The {x} leaves port in {v}. | When does the {x} set sail? | When is the departure of the {x}?
        name | The cook of the {x} was {v}. | Who prepared meals on the {x}? | Who worked in the galley of the {x}?
        material | The hull of the {x} is of {v}. | What is the body of the {x} made from? | Which stuff floats the {x}?
        name | The {x} was sighted off {v}. | Where did a lookout spot the {x}? | Near which coast was the {x} seen?
        number | The {x} took {v} passengers. | How many travellers had the {x}? | For how many people had the {x} room?
        animal | The {x} had a live {v} below deck. | Which creature travelled in the {x}? | What beast was in the {x}?
        illness | An outbreak of {v} struck the {x}. | What disease raged in the {x}? | Why was the {x} in quarantine?
    """,
    "book": """
        name | {x} was printed by {v}. | Which press produced {x}? | Who set the type of {x}?
        name | {x} was illustrated by {v}. | Who drew the pictures in {x}? | Which artist worked on {x}?
        name | {x} was reviewed by {v}. | Which critic judged {x}? | Who gave an opinion of {x}?
        number | {x} costs {v} crowns. | For how much is {x} sold? | What must a buyer pay for {x}?
        name | The villain of {x} is called {v}. | Who is the evil figure in {x}? | Whom does the reader of {x} hate?
        year | {x} was filmed in {v}. | When did {x} come to the cinema? | Which year saw {x} on the screen?
        name | {x} won the {v} prize. | Which award went to {x}? | With what was {x} honoured?
        number | The library keeps {x} under {v}. | What is the shelf mark of {x}? | Where on the racks is {x}?
        animal | {x} is told by a talking {v}. | Which creature is the narrator of {x}? | What beast speaks in {x}?
        name | A copy of {x} was found in {v}. | Where did {x} turn up? | In which place was {x} discovered?
        month | {x} is read aloud every {v}. | When is there a recital of {x}? | When do listeners hear {x}?
    """,
    "machine": """
        number | {x} needs {v} litres a day. | What does {x} consume? | How much fuel goes into {x}?
        name | {x} was tested by {v}. | Who tried {x} out? | Which engineer examined {x}?
        name | {x} was sold to {v}. | Who bought {x}? | Who is the new owner of {x}?
        number | {x} makes {v} bolts an hour. | What is the output of {x}? | How productive is {x}?
        name | {x} is operated by {v}. | Who runs {x}? | In whose hands is {x} at work?
        year | {x} was installed in {v}. | Since when does {x} stand here? | When was {x} put in place?
        colour | The casing of {x} is {v}. | How does {x} look from outside? | Which hue has the shell of {x}?
        name | The manual of {x} was written by {v}. | Who is the author of the guide to {x}? | Who explained {x}?
        animal | {x} was jammed by a {v}. | Which creature blocked {x}? | What got into the gears of {x}?
        material | {x} has wheels of {v}. | What do the rollers of {x} consist of? | On which substance does {x} move?
        name | {x} was shipped from {v}. | Where did {x} come from? | What was the place of origin of {x}?
        month | The guarantee of {x} ends in {v}. | Until when can {x} be returned? | When is the warranty of {x} over?
    """,
}


def _relations(table: dict[str, str]) -> tuple[Relation, ...]:
    return tuple(
        Relation(about, value, statement, tuple(questions))
        for about, lines in table.items()
        for value, statement, *questions in (line.strip().split(" | ") for line in lines.strip().splitlines())
    )


RELATIONS = _relations(_TABLE)
TEST = tuple(relation for place, relation in enumerate(RELATIONS) if place % 4 == 2)
"""Every fourth; training never sees how these are asked for, nor how they are stated."""
TRAIN = tuple(relation for relation in RELATIONS if relation not in TEST) + _relations(_MORE)

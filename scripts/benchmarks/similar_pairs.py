"""Questions of reasoning-gym's gsm_symbolic (Apache-2.0, seed 7), each with a paraphrase written by hand."""

PAIRS = (
    (
        "David collects garbage from 6 different apartment complexes. The first 5 have 100 apartments each "
        "and the last one is 25% bigger than the other 5 combined. David collects garbage 6 times a week from"
        " each place and he gets paid $0.25 per collection for each apartment. How much money does he make in"
        " a week?",
        "Six residential blocks have their rubbish picked up by David. Five of them hold 100 flats apiece, "
        "while the sixth is a quarter larger than those five put together. At every block he does six pickups"
        " weekly, earning 25 cents per flat each time. What are his weekly earnings?",
    ),
    (
        "It takes Olivia 11 minutes to finish a chess puzzle and 4 minutes to finish a riddle. Over the "
        "vacation she solved 3 chess puzzles and 6 riddles. How much time did she spend playing these games?",
        "Solving a riddle takes Olivia 4 minutes; a chess puzzle takes her 11. During the holidays she got "
        "through half a dozen riddles and three chess puzzles. What was the total time, in minutes?",
    ),
    (
        "A carton of sparkling water is 8 ccs of sparkling water. David drinks 3 cartons of sparkling water. "
        "If sparkling water has 2 calories per cc how many calories did he consume?",
        "David finished three cartons of fizzy water. Every carton holds 8 cc, and each cc contains 2 "
        "calories. What was his calorie intake from the drink?",
    ),
    (
        "There are 32 girls in the garden. If there are 2 times the number of boys in the garden, how many "
        "kids are in the garden?",
        "A garden has 32 girls playing in it, and twice as many boys as girls. Count all the children there.",
    ),
    (
        "A loaf of sourdough at the market costs €5. biscuits cost €2 each. How much more do 10 loaves of "
        "sourdough cost than 9 biscuits?",
        "At a shop, one sourdough loaf is priced at 5 euros and a biscuit at 2 euros. By what amount does the"
        " price of ten loaves exceed that of nine biscuits?",
    ),
    (
        "Doxa sliced an peach into 28 pieces. She ate 3 slice, her cousin ate 5 more than her, and her "
        "brother ate 5 more than her cousin. How many slices of peach did they all eat?",
        "A peach is cut by Doxa into 28 parts. Three of these she eats herself; five more than that go to her"
        " cousin, and her brother gets another five on top of what the cousin had. Altogether, how many parts"
        " were eaten?",
    ),
    (
        "Emma has 13 jars of icing in her cupboard. Each jar of icing can decorate 19 cookies. Emma wants to "
        "bake enough cookies to use up all of her icing. If each tray holds 19 cookies, how many trays worth "
        "of cookies should she bake?",
        "There are 13 icing jars in Emma's pantry, and one jar is enough for 19 cookies. If 19 cookies fit on"
        " a baking tray and she wants no icing left over, how many trays of cookies must she make?",
    ),
    (
        "I have 21 liters of apple drink that are 0.75 water and I wish to add it to 20 liters of grape drink"
        " that is 0.75 water. But as I pour it, I spill 5 liter of the apple drink. How much water is in the "
        "remaining 36 liters?",
        "Into 20 liters of a grape beverage, three quarters of which is water, I want to pour 21 liters of an"
        " apple beverage with the same share of water, but 5 liters of the apple beverage end up on the "
        "floor. Of the 36 liters that are left, how much is water?",
    ),
    (
        "John was a pen pal with 5 people. He stopped being penpals with 1 of them. They each send 3 letters "
        "a week that are 8 pages long. He responds in kind. He can write a page every 5 minutes. How many "
        "hours does he spend writing a week?",
        "John used to write to five pen pals but dropped one. Each of those left mails him three 8-page "
        "letters every week, and he answers with just as much. If a page takes him five minutes, what number "
        "of hours per week goes into his writing?",
    ),
    (
        "There are 76 fourth-graders at Oak Ridge School. 46 of them are girls. On Thursday, 3 fourth-grade "
        "girls and 5 fourth-grade boys were absent. How many fourth grade boys were at Oak Ridge School on "
        "Thursday?",
        "Oak Ridge School has 76 pupils in grade four, 46 of whom are female. If three of the girls and five "
        "of the boys from that grade stayed home on Thursday, how many of its boys were in school that day?",
    ),
    (
        "Jennifer and Charlotte are sisters from Chicago who love collecting signatures from musicians. "
        "During their summer break from school, the sisters spend every afternoon collecting signatures. "
        "After 4 weeks, Jennifer and Charlotte compare their autograph books, counting up the number of "
        "signatures each sister has collected. Jennifer has 18 signatures in her book, and Charlotte has 59. "
        "The sisters have 4 more weeks of summer break, and they decide they want to reach 90 signatures "
        "between them by the end of the summer. How many signatures do the sisters need to collect to reach "
        "their goal?",
        "Two sisters from Chicago, Jennifer and Charlotte, collect autographs of musicians. A month into "
        "their holidays Jennifer owns 18 of them and Charlotte 59. With four weeks to go, they aim for a "
        "combined 90. How many are they still short?",
    ),
    (
        "Emma is an avid gardener. Yesterday, she received 23 new potted plants from her favorite plant "
        "nursery. She already has 12 potted plants on each of the 64 window ledges of her large country home."
        " Feeling generous, she has decided that she will give 5 potted plant from each ledge to friends and "
        "family tomorrow. How many potted plants will Emma remain with?",
        "Every one of the 64 windowsills in Emma's big country house has a dozen plants in pots. Yesterday a "
        "nursery delivered 23 more to her. Tomorrow she'll hand out five from each sill to relatives and "
        "friends. What number of plants stays with her?",
    ),
    (
        "Emma has 42 light green spools of thread, 65 dark green spools of thread, 56 light blue spools of "
        "thread, and 265 dark blue spools of thread. What percent of her spools are green?",
        "Emma's thread collection consists of 42 spools in light green, 65 in dark green, 56 in light blue "
        "and 265 in dark blue. Green spools make up which percentage of it?",
    ),
    (
        "John is 17 years old. In 9 years his cousin Linda will be 3 times as old as John is now. How old is "
        "Linda right now?",
        "Nine years from now, Linda, who is John's cousin, will have three times John's present age. John is "
        "17. What is Linda's age today?",
    ),
    (
        "William scored 294 points in one game of bowling. Joseph scored 49 more than 50% as many as William."
        " How many points did William and Joseph have in total?",
        "In a bowling match William got 294 points, and Joseph got half of William's score plus 49. What did "
        "the two score together?",
    ),
    (
        "The Williams family is busy making cupcakes. So far, they've made 7425 cupcakes. They have 2085 "
        "vanilla cupcakes, 1733 blueberry cupcakes, and some strawberry cupcakes. How many strawberry "
        "cupcakes have they made?",
        "Of the 7425 cupcakes baked by the Williams family up to now, 2085 are vanilla, 1733 are blueberry "
        "and the remainder strawberry. Find the number of strawberry ones.",
    ),
    (
        "George slew 400 trolls with his mighty mace, while Henry, using a lance, slew 0.75 as many trolls as"
        " George. Using a wooden club, Edward slew 2 as many trolls as Henry. But Bruce, having forgot his "
        "sword at home, slew 0.5 as many trolls as Edward using a butter knife. How many trolls has Bruce "
        "slain?",
        "With a mace George killed 400 trolls. Henry's lance accounted for three quarters of that number, "
        "Edward's club for double Henry's number, and Bruce, who only had a butter knife, managed half of "
        "Edward's. What was Bruce's count?",
    ),
    (
        "Charlotte is learning to write and decides to keep re-writing the hiragana (with 48 letters) until "
        "she knows it. She writes it in full 2, writes 0.3333333333333333 of it once, then re-writes "
        "everything she has already written. How many letters has Charlotte written in total?",
        "To learn the 48 hiragana letters, Charlotte copies out all of them two times, then a third of them "
        "once, and finally repeats everything that she has put on paper so far. What is the overall number of"
        " letters she wrote?",
    ),
    (
        "The Treasure hunt team hid 60 coins. The Lopez twins each found 18 coins. All the other coins except"
        " 20 were found by their friends. How many coins did the friends find?",
        "Sixty coins were hidden for a treasure hunt. Two twins named Lopez discovered 18 of them apiece. "
        "Their friends discovered everything else apart from 20 coins. How many was that?",
    ),
    (
        "An uncle eats 6 tacos per day, his partner eats 5 tacos per day, and their grandchild eats 3 tacos "
        "per day. How many tacos does this family eat in one week?",
        "Each day a man has 6 tacos, his wife 5 and the grandchild 3. What's the family's weekly taco consumption?",
    ),
    (
        "John gets 100 emails a day. 39% of those emails don't require any response. John responds to the "
        "rest of them. How many emails does John respond to in a 3 day work week?",
        "Every day 100 messages land in John's inbox; 39 percent need no answer and he replies to all others."
        " If he works three days, to how many messages does he reply?",
    ),
    (
        "Comet Hyakutake orbits the sun every 99 years. Michael's dad saw the Comet when he was 25 years old."
        " Michael saw the comet a second time when he was 4 times the age his dad was when he saw the Comet. "
        "How old was Michael when he saw the Comet for the first time?",
        "A comet named Hyakutake comes around once in 99 years. It was seen by Michael's father at the age of"
        " 25. Michael's second sighting came when he was four times as old as his father had been then. At "
        "what age did Michael first see it?",
    ),
    (
        "A juggler can juggle 96 balls. 25% of the balls are golf balls, and 25% of the golf balls are red. "
        "How many red golf balls are there?",
        "Someone juggles 96 balls, a quarter of which are for golf. A quarter of those golf balls are colored"
        " red. What number of red golf balls is that?",
    ),
    (
        "Mia and Sophia are currently 6 years apart in age. If Mia, who is younger than Sophia, is 68 years "
        "old, what's the average of their ages?",
        "Sophia is six years older than Mia, who is 68. What do you get if you average how old they are?",
    ),
    (
        "Mia qualified for a spot on the cycling team, so she went shopping for some athletic gear. She "
        "bought a sports bra for €16, a pair of cycling leggings for €12 more than the sports bra cost, and a"
        " pair of sneakers that were originally €78 but were on sale for half price. She had a coupon for €5 "
        "off the package of €5 athletic headbands that she also bought. How much did she spend on athletic "
        "gear?",
        "After making the cycling team, Mia bought equipment: a sports bra at 16 euros, leggings that were 12"
        " euros dearer than the bra, trainers at half of their usual 78 euros, and headbands for 5 euros on "
        "which she had a voucher worth 5 euros. What did all this cost her?",
    ),
    (
        "There are 20 students playing volleyball and twice that number playing basketball. There are 11 boys"
        " and 30 girls playing table tennis. If each student only participates in one group, how many "
        "students are there in total?",
        "Volleyball is played by 20 students, basketball by double as many, and table tennis by 11 boys plus "
        "30 girls. Nobody is in two groups. What is the overall number of students?",
    ),
    (
        "The vending machines sell gum for 40 cents and cookies for 80 cents. James spent $800 and got 10 "
        "bags of gum and had 7% of his money left. How many cookies did he buy?",
        "James had 800 dollars. From vending machines he took 10 packs of gum, at 40 cents a pack, and "
        "cookies at 80 cents each, and 7 percent of the money remained. What number of cookies did he get?",
    ),
    (
        "A hospital has a capacity of 3200 beds with 1/4 occupied. Due to the major accident, 135 patients "
        "are admitted into the hospital each day. Calculate the total number of unoccupied beds in the "
        "hospital after 2 weeks.",
        "A quarter of the 3200 beds of a hospital are taken. Following a large accident, 135 new patients "
        "arrive daily. How many beds remain free when 14 days have passed?",
    ),
    (
        "Emma walks 28 kilometers every day on her favorite walking trail, which includes 15 kilometers of "
        "walking on the beach and 13 kilometers of walking on the sidewalk. On the sidewalk, Emma walks at "
        "twice the rate of speed that she does on the beach. If 45 minutes of her walk is spent on the beach,"
        " how long does it take for her to complete the entire 28-kilometer walk, in minutes?",
        "Emma's daily hike is 28 km long: 15 km along the beach and 13 km on pavement, where she goes twice "
        "as fast as on the beach. The beach part takes her 45 minutes. Find the duration of the entire hike "
        "in minutes.",
    ),
    (
        "David is raising money for a field trip. He has applied for help from the youth club, which has "
        "decided to cover 1/2 of the cost of the field trip. How much money is David missing if he has £115 "
        "and the field trip costs £930?",
        "A field trip costs 930 pounds. A youth club will pay half of this for David, who has already saved "
        "115 pounds. How much does he still lack?",
    ),
    (
        "According to its nutritional info, a bag of cookies has 350 calories per serving. If a 48 ounces bag"
        " has 4 servings, how many ounces can you eat if your daily calorie target is 2125 and you have "
        "already consumed 1075 calories?",
        "One serving of some cookies has 350 calories, and there are four servings in a bag of 48 ounces. You"
        " aim at 2125 calories a day and have had 1075. How many ounces of cookies may you still eat?",
    ),
    (
        "John is selling cupcake and blueberry pie for a fundraiser. On Monday, he sold 29 boxes of cupcake "
        "and 15 fewer boxes of blueberry pie, than on Wednesday. On Wednesday, he sold 11 more boxes of "
        "cupcake than on Monday and 21 boxes of blueberry pie. If the cupcake cost €8 and the blueberry pie "
        "cost €27, how much did John earn for two days?",
        "For charity John sells boxes of cupcakes at 8 euros and of blueberry pie at 27 euros. On Wednesday "
        "21 pie boxes went, and 11 cupcake boxes more than on Monday. Monday's sales were 29 cupcake boxes, "
        "and 15 pie boxes less than Wednesday's. What were his takings over both days?",
    ),
    (
        "If Robert eats 4 eggs a day for 108 days and then increases it to 6 eggs a day for 80 days, how many"
        " dozens of eggs will Robert need for 188 days?",
        "Over 108 days Robert has four eggs daily, and over the following 80 days six eggs daily. Express in "
        "dozens the eggs needed for all 188 days.",
    ),
    (
        "John places bananas on the basket. Each basket can hold 30 bananas. If he has 98 bananas and 3 "
        "baskets, how many bananas won't he be able to place on the basket?",
        "Three baskets take 30 bananas each. Of John's 98 bananas, how many will be left without a place in a basket?",
    ),
    (
        "Sophia's mom said that she had £304 budgeted for her birthday party. She wants to make sure she and "
        "her friends all get to play one round of laser tag, have £3 in pinball tokens, and get to ride the "
        "bumper cars 3. A round of laser tag is £5. The bumper cars cost £10 a ride. How many friends can she"
        " invite?",
        "For her birthday Sophia may spend 304 pounds. Everyone, herself included, is to have one game of "
        "laser tag at 5 pounds, pinball tokens for 3 pounds and three bumper car rides at 10 pounds a ride. "
        "What is the largest number of friends that she can bring?",
    ),
    (
        "William went to buy some school supplies. He bought 20 crayons which cost £11.0 each, 12 folders "
        "which cost £12.25 each, and a rim of bond paper which cost £24. How much did William spend on "
        "everything?",
        "Shopping for school, William took 20 crayons at 11 pounds apiece, a dozen folders at 12.25 pounds "
        "apiece and bond paper for 24 pounds. State his total bill.",
    ),
    (
        "When the water is cold Jim swims a kilometer in 19 minutes. When the water is warm Jim swims a "
        "kilometer in 8 minutes more than 2 times as long. How much longer does Jim take to swim 5 kilometers"
        " on a hot day than a cold day?",
        "Jim needs 19 minutes to swim one kilometer in cold water. In warm water he needs eight minutes more "
        "than double that. Over a distance of five kilometers, how many extra minutes does warm water cost "
        "him?",
    ),
    (
        "A virus infects 11 people. Every day, each infected person infects 3 others. How many people are "
        "infected after 3 days?",
        "Eleven people carry a virus, and everyone who carries it passes it on to three more people each day."
        " How large is the number of carriers when three days are over?",
    ),
    (
        "John is feeding his livestock feed. Each goat needs 8 kg, and each donkey needs 8 kg less than twice"
        " the amount each goat needs. If there are 28 goats and 37 donkeys, how many kg of feed does John "
        "need?",
        "On John's farm a goat gets 8 kg of feed, and a donkey gets 8 kg short of double a goat's ration. He "
        "keeps 37 donkeys and 28 goats. What weight of feed is required?",
    ),
    (
        "Mary is knitting winter wear for her 2 grandchildren. They're twins, so they're all the same size. "
        "She wants to make a tunic, sweater, shawl, socks, and mittens for each of them. It takes 3 skeins of"
        " wool to make a tunic, 18 for a sweater, 15 for a shawl, 18 for a pair of socks, and 12 for a pair "
        "of mittens. How many skeins of wool will she need to buy?",
        "For each of her twin grandkids, who wear the same size, Mary will knit one tunic (3 skeins of wool),"
        " one sweater (18), one shawl (15), one pair of socks (18) and one pair of mittens (12). How much "
        "wool, in skeins, must she get?",
    ),
    (
        "William has a bag of buttons with 70 inside. He tripped over stick while carrying it and dropped 35 "
        "of them. He scrambled to search for them but only came up with 15. When he went back home, he "
        "inspected the buttons further. 9 of them he picked up wasn't a buttons, but actually pebbles so he "
        "got rid of it. How many buttons did William end up with?",
        "William stumbled over a stick and lost 35 of the 70 buttons that were in his bag. Searching the "
        "ground, he picked up just 15 things, and at home 9 of those proved to be pebbles, which he threw "
        "out. What was his final number of buttons?",
    ),
    (
        "There are currently 14 red balls, 10 blue balls, and 47 yellow balls in the shop. red balls cost €7,"
        " blue balls cost €5 and yellow balls cost €2. How much will the shop have received after all the "
        "balls are sold?",
        "A store sells its stock of balls: 14 red ones for 7 euros each, 10 blue ones for 5 euros each and 47"
        " yellow ones for 2 euros each. How much money comes in when none are left?",
    ),
    (
        "A fog bank rolls in from the ocean to cover a city. It takes 324 minutes to cover every 32 miles of "
        "the city. If the city is 64 miles across from the oceanfront to the opposite inland edge, how many "
        "minutes will it take for the fog bank to cover the whole city?",
        "Coming in from the sea, fog needs 324 minutes to spread over 32 miles of a town that measures 64 "
        "miles from the shore to its far side. After how many minutes is the town completely covered?",
    ),
    (
        "John is rolling a 20-sided die. How much more likely is it (expressed as a percentage) that he rolls"
        " a number greater than 5 than that he rolls two odd numbers in a row?",
        "On a die with twenty sides, compare the chance of a single result above five with the chance of two "
        "odd results one after the other. By how many percentage points is John's first event more probable?",
    ),
)

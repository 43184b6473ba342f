-- The table of the demo and of the TAP tests: a few dozen prompts of every kind that the bundled model has learnt.
CREATE TABLE docs (id int PRIMARY KEY, prompt text NOT NULL);

INSERT INTO docs
SELECT row_number() OVER (), prompt
FROM unnest(ARRAY[
	'What is the capital of Kenya?',
	'Which city is the capital of Lithuania?',
	'Name the capital of Tonga.',
	'Which continent is Vietnam in?',
	'On which continent is Ghana?',
	'What is the currency of South Korea?',
	'What money do people use in Poland?',
	'Sentiment (positive or negative): This lamp is awful.',
	'Is this review positive or negative? My new printer turned out comfortable and quiet.',
	'Is this review positive or negative? What an awful blender! Do not buy it.',
	E'I bought the tent last month and it is fantastic.\n\nClassify the text above. Answer with exactly one of: positive, negative.',
	E'The kettle is great. The price is very fair.\n\nDoes the text mention the price? Answer yes or no.',
	E'Does this review mention the support? Answer yes or no.\n\nWhat a solid phone! The support team was kind.',
	E'Text: What a quiet printer! Highly recommended.\nCondition: mentions the price\nDoes the text meet the condition? Answer yes or no.',
	'Which product is this review about? My new chair turned out dim and bad. Do not buy it.',
	'Name the product in one word: This watch is sturdy. I use it at home.',
	'Extract name, city and year as JSON: Ben Kim moved to Oslo in 1999.',
	'Extract name, city and year as JSON: Rosa Santos has lived in Budapest since 1970.',
	E'The office in Bern was founded by Maria Santos in 1996.\n\nReturn a JSON object with the keys name, city and year.',
	'Summarise in one sentence: Ticket from Ben: I ordered a lamp. Now the invoice lists the same item two times. The customer was charged twice.',
	'Summarize: Ticket from Wei: I ordered a jacket. Now the login page shows an error. The customer cannot log in.',
	E'Classify this ticket. Answer with exactly one of: login, billing, shipping, refund, crash, password.\n\nTicket from Grace: I ordered a tent. Now the tracking page has not changed for days. The customer did not receive the order.',
	'Translate to French: thank you',
	'Translate to Spanish: good night',
	'What is "house" in German?',
	'What is 17 + 25?',
	'Add 15 and 29.',
	'30 - 12 =',
	'Write SQL that counts the rows of the table orders.',
	'Write SQL: average price of products per country.',
	'Write SQL: the 10 newest rows of events by created_at.',
	'Who are you?',
	'Good morning',
	'Describe these countries: France, Japan.',
	'Describe these countries: Kenya, Tanzania, Uganda, Samoa.',
	'Write one sentence about each of these countries: Switzerland, Moldova.'
]) AS prompt;

-- The second sample: a support knowledge base that several companies share. Nothing in it is like the shop: the key is
-- two texts, some of them with spaces, slashes, commas, quotes and accents; there are jsonb, an enum and two arrays.
-- Ten products times twenty questions: 200 articles, the same on every machine.
BEGIN;

CREATE SCHEMA kb;
CREATE TYPE kb.status AS ENUM ('draft', 'published', 'archived');
CREATE TYPE kb.audience AS ENUM ('customer', 'agent', 'developer');
CREATE TYPE kb.priority AS ENUM ('low', 'normal', 'urgent');

CREATE TABLE kb.article (
    tenant     text,
    slug       text,
    title      text NOT NULL,
    body       text NOT NULL,
    tags       text[] NOT NULL DEFAULT '{}',
    attributes jsonb NOT NULL DEFAULT '{}',
    status     kb.status NOT NULL DEFAULT 'draft',
    audience   kb.audience[] NOT NULL DEFAULT '{customer}',
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, slug)
);

CREATE TABLE kb.ticket (
    id        bigint PRIMARY KEY,
    tenant    text NOT NULL,
    subject   text NOT NULL,
    message   text NOT NULL,
    priority  kb.priority NOT NULL DEFAULT 'normal',
    sender    jsonb NOT NULL DEFAULT '{}',
    email     text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now()
);

-- Long texts live out of line: with the whole old row in the log, an update that leaves them alone still carries them.
ALTER TABLE kb.article REPLICA IDENTITY FULL;
ALTER TABLE kb.ticket REPLICA IDENTITY FULL;

CREATE TEMP TABLE product (number, tenant, name, things, place, platforms) ON COMMIT DROP AS VALUES
    (0, 'acme',      'Acme Sync',         'files',        'the tray icon',          '["windows", "macos", "ios", "android"]'::jsonb),
    (1, 'globex',    'Globex Board',      'whiteboards',  'the toolbar',            '["web", "ios"]'),
    (2, 'initech',   'Initech Ledger',    'invoices',     'the year''s overview',   '["web", "windows"]'),
    (3, 'umbrella',  'Umbrella Desk',     'conversations','the inbox',              '["web", "ios", "android"]'),
    (4, 'hooli',     'Hooli Calendar',    'appointments', 'the week view',          '["web", "ios", "android", "macos"]'),
    (5, 'stark',     'Stark Plans',       'drawings',     'the sheet list',         '["windows", "macos"]'),
    (6, 'wayne',     'Wayne Rota',        'shifts',       'the month''s plan',      '["web", "android"]'),
    (7, 'tyrell',    'Tyrell Recipes',    'recipes',      'the kitchen screen',     '["web", "ios"]'),
    (8, 'cyberdyne', 'Cyberdyne Forms',   'forms',        'the list of answers',    '["web"]'),
    (9, 'soylent',   'Soylent Inventory', 'stock counts', 'the scanner''s screen',  '["android", "web"]');

-- %1$s is the product, %2$s what it keeps, %3$s where its menu is.
CREATE TEMP TABLE question (number, slug, title, body, tags, minutes, audience) ON COMMIT DROP AS VALUES
    (0, 'reset password', 'Reset your password in %1$s',
     'Choose "Forgot your password?" below the sign-in form and enter the address that you use for %1$s. The link in the message works once and for one hour. If no message arrives, look into the junk folder, and then ask an administrator whether your company signs in through its own directory: such accounts have no password here.',
     '{account,password,sign-in}'::text[], 2, '{customer}'::kb.audience[]),
    (1, 'two-step sign-in', 'Turn on two-step sign-in',
     'Open your profile in %1$s, choose Security and scan the square with an authenticator app. Print the ten recovery codes and keep them away from the computer: each replaces the app once. Whoever loses both the telephone and the codes must be let in again by an administrator, who will want to see a face.',
     '{account,security,sign-in}', 4, '{customer}'),
    (2, 'import / export', 'Move your %2$s in and out',
     'Export is in the menu of %3$s and makes one archive with your %2$s and a table of contents. Import reads the same archive, and plain CSV with a line of headings. Nothing is overwritten: what is there already under the same name is kept and the newcomer gets a number. Large imports run at night, and a message tells you when yours is done.',
     '{data,import,export}', 6, '{customer,agent}'),
    (3, 'share with a guest', 'Show your %2$s to somebody without an account',
     'Choose Share in %3$s and enter an address. The guest gets a link that opens nothing but what you have chosen, and you decide whether it may be changed. Links end after thirty days unless you say otherwise. You see every open link in your profile and can end it there at once.',
     '{sharing,guests,permissions}', 3, '{customer}'),
    (4, 'cancel a subscription', 'Cancel your subscription',
     'The owner of the account finds Cancel in the billing settings of %1$s. You keep everything until the end of the period that is paid for; after that your %2$s can be read and exported for ninety days and are then deleted. We pay back whole unused months of a yearly plan, without being asked.',
     '{billing,subscription,cancel}', 3, '{customer}'),
    (5, 'invoice, receipt & VAT', 'Find an invoice, or change what is printed on it',
     'Invoices are made on the first day of each month and lie in the billing settings as PDF. Change the company''s name, address and VAT number there before that day: what has been issued cannot be changed, but support will cancel it and issue another. Receipts for card payments are sent to the address of the owner.',
     '{billing,invoice,tax}', 4, '{customer}'),
    (6, 'crash on start', '%1$s closes right after it was opened',
     'Restart the machine first, because an update may be waiting. If %1$s still closes, hold Shift while you open it: it then starts without extensions and without the last open window. Your %2$s are safe, they are not kept on this device alone. Send us the report that it offers, it names the part that failed.',
     '{troubleshooting,crash,start}', 5, '{customer,agent}'),
    (7, 'slow search', 'Searching takes long, or does not find what is there',
     'The index is built in the background after an update and after a large import; until it is done, results are few and slow. %3$s shows how far it is. Words of fewer than three letters are not found. If the index stays at the same number for an hour, let it be built anew from the settings: that takes minutes, not hours.',
     '{search,performance,troubleshooting}', 5, '{customer,agent}'),
    (8, 'offline mode', 'Work without a connection',
     'What you have opened in the last two weeks can be read and changed without a connection, and is sent when there is one again. If somebody else has changed the same thing meanwhile, you are shown both and choose. Pin your most important %2$s in %3$s, and they are always there, in the train and in the cellar.',
     '{offline,conflicts,travel}', 4, '{customer}'),
    (9, 'delete my account', 'Delete an account and all that is stored of it',
     'Choose Delete in your profile and enter your password once more. Your name disappears from shared %2$s within a day, backups forget you after thirty-five days, and invoices are kept as long as the law wants them. There is no way back after the first day. Administrators can delete the account of somebody who has left.',
     '{account,privacy,delete}', 3, '{customer}'),
    (10, 'restore a version', 'Get back an earlier version',
     'Each change of your %2$s is kept for ninety days. Open History in %3$s, look at the days and the names, and restore what you want: the present version is kept as well, so nothing can go wrong. What was deleted lies in the trash for thirty days, in the place where it was, with everything below it.',
     '{history,restore,trash}', 3, '{customer}'),
    (11, 'webhooks', 'Be told by a webhook when something changes',
     'Register an address under Developers in the settings of %1$s and choose the kinds of events. Each call carries a signature of its body with your secret: compare it before you believe anything. We try again for a day, more and more seldom, and in the order in which things happened, so answer with 200 quickly and do the work afterwards.',
     '{api,webhooks,developers}', 12, '{developer}'),
    (12, 'API tokens', 'Create and revoke tokens for the API',
     'A token belongs to a person and may do what this person may, or less. Create it under Developers in the settings and copy it at once, it is shown a single time. Give each program its own, so that you can revoke one without stopping the others. A token that lies in a public repository is found by us and revoked within minutes.',
     '{api,security,developers}', 6, '{developer}'),
    (13, 'rate limits', 'What the API answers when you ask too often',
     'Each token may ask six hundred times a minute. Above that %1$s answers with 429 and says in Retry-After how many seconds to wait. Ask for pages of a hundred %2$s instead of single ones, use the field updated_since, and let webhooks tell you about changes: then nobody reaches the limit.',
     '{api,limits,developers}', 8, '{developer}'),
    (14, 'single sign-on', 'Sign in through your company''s directory',
     'An administrator enters the metadata address of the directory and tries it with one account before it is switched on for all. From then on passwords of %1$s no longer work, except for the owner, who may need to come in when the directory is down. Groups of the directory can become roles; what they may do is decided here.',
     '{security,sso,administration}', 15, '{agent,developer}'),
    (15, 'roles and permissions', 'Who may see and change what',
     'Readers see, editors change, administrators invite and remove people, and the owner pays. A role holds for everything, or for one folder and what lies below it; the more generous of two roles wins. Look at your %2$s as somebody else sees them: the menu of %3$s has a View as for administrators.',
     '{permissions,roles,administration}', 5, '{agent}'),
    (16, 'notifications: too many', 'Get fewer messages',
     'Open your profile, choose Notifications and take the daily summary instead of single messages. Mute what does not concern you from the menu of %3$s. You are still told when somebody writes your name, when something of yours is about to end, and when a sign-in comes from a new place.',
     '{notifications,email,profile}', 2, '{customer}'),
    (17, 'printing “as seen”', 'Print your %2$s the way they look',
     'Use Print in %3$s and not that of the browser, which leaves out what is not in view. Choose the paper first, then whether comments are printed. Colours are those of the screen; for a printer with little ink there is an outline mode. A PDF made here has real text in it, so it can be searched and read aloud.',
     '{printing,pdf,accessibility}', 3, '{customer}'),
    (18, 'screen readers', 'Use %1$s with a screen reader or by keyboard',
     'Everything in %1$s can be reached by keyboard; press the question mark for the list of keys. Headings and landmarks are in the order in which they are seen. Turn on Announce changes in your profile if others work on the same %2$s. Where something cannot be read, tell us the page: such a report goes before all others.',
     '{accessibility,keyboard,screen-reader}', 4, '{customer,agent}'),
    (19, 'naïve café: accents', 'Names with accents, and alphabets other than Latin',
     'Names of %2$s may be written in any alphabet, and a search for cafe finds café as well. Sorting follows the language of your profile: in Swedish ö comes last, in German it is an o. If you see question marks after an import, the file was not UTF-8: save it anew from the spreadsheet and choose this encoding.',
     '{languages,unicode,import}', 3, '{customer}');

INSERT INTO kb.article
SELECT p.tenant, q.slug, format(q.title, p.name, p.things, p.place), format(q.body, p.name, p.things, p.place), q.tags,
       jsonb_build_object('product', p.name, 'minutes', q.minutes, 'platforms', p.platforms,
                          'review', jsonb_build_object('due', 2026 + (p.number + q.number) % 3, 'by', NULL)),
       (CASE WHEN (3 * p.number + q.number) % 17 = 4 THEN 'draft' WHEN (p.number + 2 * q.number) % 19 = 7 THEN 'archived'
             ELSE 'published' END)::kb.status,
       q.audience, timestamptz '2026-01-05 09:00+00' + (p.number * 37 + q.number * 11) * interval '7 hours'
  FROM product p CROSS JOIN question q;

CREATE TEMP TABLE complaint (number, subject, message, priority) ON COMMIT DROP AS VALUES
    (0, 'Locked out on a Monday', 'I changed my telephone at the weekend and now %1$s wants a code that I cannot have. The paper with the recovery codes is in a box in the cellar of my old flat. My report is due at noon.', 'urgent'),
    (1, 'Charged twice', 'My card shows the same amount for %1$s on two days that follow each other. I have one account only. Please tell me which of the two I shall get back.', 'normal'),
    (2, 'My %2$s look different on paper', 'On the screen all is well, but the printer leaves out the right-hand column. I have tried two printers and three kinds of paper.', 'low'),
    (3, 'Import stops at 4,000 rows', 'The file has 11,000 rows and always ends at the same one. There is an umlaut in it, if that matters. Nothing says what is wrong.', 'normal'),
    (4, 'Somebody signed in from a place where I have never been', 'I got a message that I had signed in to %1$s last night. I was asleep. What do I do first, and can you see what was looked at?', 'urgent'),
    (5, 'Leaving, with thanks', 'We close our company in March. How do we take our %2$s with us, and when will everything be deleted on your side?', 'low');

INSERT INTO kb.ticket
SELECT p.number * 10 + c.number, p.tenant, format(c.subject, p.name, p.things), format(c.message, p.name, p.things),
       c.priority::kb.priority, jsonb_build_object('language', 'en', 'plan', CASE p.number % 2 WHEN 0 THEN 'team' ELSE 'solo' END),
       format('someone%s@%s.example', c.number, p.tenant), timestamptz '2026-02-02 08:00+00' + (p.number * 6 + c.number) * interval '5 hours'
  FROM product p CROSS JOIN complaint c;

COMMIT;

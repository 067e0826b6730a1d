-- The sample shop: two tables as an application would have them. Can be run again at any time.
CREATE SCHEMA IF NOT EXISTS shop;

CREATE TABLE IF NOT EXISTS shop.customers (
    id                bigint PRIMARY KEY,
    full_name         text NOT NULL,
    email             text NOT NULL,
    segment           text NOT NULL,
    interests         text[] NOT NULL DEFAULT '{}',
    notes             text NOT NULL DEFAULT '',
    marketing_consent boolean NOT NULL DEFAULT false,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS shop.content (
    id         bigint PRIMARY KEY,
    title      text NOT NULL,
    body       text NOT NULL,
    tags       text[] NOT NULL DEFAULT '{}',
    locale     text NOT NULL DEFAULT 'en-GB',
    published  boolean NOT NULL DEFAULT false,
    price      numeric(10,2),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Long texts live out of line: with the whole old row in the log, an update that leaves them alone still carries them.
ALTER TABLE shop.customers REPLICA IDENTITY FULL;
ALTER TABLE shop.content REPLICA IDENTITY FULL;

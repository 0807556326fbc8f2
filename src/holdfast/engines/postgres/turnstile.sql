-- The turnstile in PL/pgSQL: one function call per operation. @schema@ is replaced by the schema's quoted name.
--
-- Every function locks the turnstile's row first and reads the clock and everything else after that. Under READ COMMITTED
-- each statement of a VOLATILE function sees what was committed before it began, so it sees all that was done under the
-- lock before. Under any other isolation level it would see what stood before it waited: that is refused.
--
-- The two common cases have a short way, an UPDATE that decides by the row as it stands once it is locked: to take what
-- nobody has, and to wait behind others who wait. Its clock was read before the lock; so a lease may end a little
-- earlier, yet never earlier than its holder reckons, who counts from before he asked. A claim that is alone stands in the
-- turnstile's own row (`alone`): taking and giving back what nobody else wants are one UPDATE each. Whatever else is
-- asked makes a row of `claim` of it first (`unfold`).
--
-- Times are µs since 1970 on the server's clock. By the lemma of admission a claim is admitted where its token is not
-- above its turnstile's frontier.

CREATE TABLE @schema@.turnstile (
  id bigint GENERATED ALWAYS AS IDENTITY,
  address bytea PRIMARY KEY,           -- namespace and kind:name
  capacity bigint NOT NULL DEFAULT 0,
  channel text NOT NULL DEFAULT '',    -- where it announces that it changed; '' if it does not
  load bigint NOT NULL DEFAULT 0,      -- the weight of the admitted
  admitted bigint NOT NULL DEFAULT 0,
  waiting bigint NOT NULL DEFAULT 0,
  last bigint NOT NULL DEFAULT 0,      -- the last token
  first bigint NOT NULL DEFAULT 0,     -- no claim has a lower token: keeps scans off the dead rows of former claims
  frontier bigint NOT NULL DEFAULT 0,
  wanted bigint NOT NULL DEFAULT 0,    -- somebody asked for what those up to this token hold,
  told bigint NOT NULL DEFAULT 0,      -- and those up to this token were signalled so
  next_end bigint NOT NULL DEFAULT 0,  -- no lease ends before
  tail_end bigint NOT NULL DEFAULT 0,  -- when the last who came ends if it is dead
  tied boolean NOT NULL DEFAULT false, -- there may be claims that end with their client's connection
  buried bigint NOT NULL DEFAULT 0,    -- until when tombstones stand
  touched bigint NOT NULL DEFAULT 0,   -- the latest time at which it was used
  alone bytea,                         -- the id of the one claim there is: its weight is load, its token frontier,
  ttl bigint,                          -- its end next_end
  since bigint,
  inbox text,
  owner bytea,
  payload bytea
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX turnstile_id ON @schema@.turnstile (id) WITH (fillfactor = 50);

CREATE TABLE @schema@.claim (
  turnstile bigint NOT NULL,
  token bigint NOT NULL,
  id bytea NOT NULL,
  weight bigint NOT NULL,
  ttl bigint NOT NULL,
  since bigint NOT NULL,
  ends bigint NOT NULL,
  inbox text NOT NULL,
  tied boolean NOT NULL,
  owner bytea NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (turnstile, token),
  UNIQUE (turnstile, id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE TABLE @schema@.tombstone (
  turnstile bigint NOT NULL,
  id bytea NOT NULL,
  until bigint NOT NULL,
  was_there boolean NOT NULL,
  PRIMARY KEY (turnstile, id)
);

CREATE TABLE @schema@.client (  -- those whose claims end with their connection for signals
  inbox text PRIMARY KEY,
  pid integer NOT NULL,
  started timestamptz NOT NULL
);

CREATE FUNCTION @schema@.now_us() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT (date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::bigint
$$;

CREATE FUNCTION @schema@.refuse_isolation() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'holdfast works under READ COMMITTED, not under %', current_setting('transaction_isolation')
    USING ERRCODE = 'HF001';
END $$;

-- Make a row of the claim that stood alone.
CREATE FUNCTION @schema@.unfold(s @schema@.turnstile) RETURNS @schema@.turnstile LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO @schema@.claim VALUES
    (s.id, s.frontier, s.alone, s.load, s.ttl, s.since, s.next_end, s.inbox, s.tied, s.owner, s.payload);
  s.alone := NULL;
  s.first := s.frontier;
  s.tail_end := s.next_end;
  UPDATE @schema@.turnstile SET alone = NULL, first = s.first, tail_end = s.tail_end WHERE address = s.address;
  RETURN s;
END $$;

-- A row for an address that has none, locked; and some rows that nobody used for an hour go.
CREATE FUNCTION @schema@.found(p_address bytea) RETURNS @schema@.turnstile LANGUAGE plpgsql AS $$
DECLARE
  s @schema@.turnstile;
  long_ago bigint := @schema@.now_us() - 3600000000;
  stale bigint[];
BEGIN
  FOR try IN 1..10 LOOP
    INSERT INTO @schema@.turnstile (address) VALUES (p_address) ON CONFLICT DO NOTHING RETURNING * INTO s;
    IF FOUND THEN
      SELECT array_agg(id) INTO stale FROM (
        SELECT id, touched, next_end FROM @schema@.turnstile t WHERE id >= floor(random() * s.id)::bigint ORDER BY id LIMIT 8
      ) few WHERE touched < long_ago AND next_end < long_ago AND id <> s.id
        AND NOT EXISTS (SELECT FROM @schema@.claim c WHERE c.turnstile = few.id AND c.ends > long_ago);
      IF stale IS NOT NULL THEN
        WITH idle AS (
          SELECT id FROM @schema@.turnstile WHERE id = ANY (stale) AND touched < long_ago FOR UPDATE SKIP LOCKED
        ), gone AS (
          DELETE FROM @schema@.turnstile t USING idle WHERE t.id = idle.id RETURNING t.id
        ), claims AS (
          DELETE FROM @schema@.claim c USING gone WHERE c.turnstile = gone.id
        )
        DELETE FROM @schema@.tombstone x USING gone WHERE x.turnstile = gone.id;
      END IF;
      RETURN s;
    END IF;
    SELECT * INTO s FROM @schema@.turnstile WHERE address = p_address FOR UPDATE;
    IF FOUND THEN RETURN s; END IF;
  END LOOP;
  RAISE serialization_failure;
END $$;

CREATE FUNCTION @schema@.save(s @schema@.turnstile) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE @schema@.turnstile SET
    capacity = s.capacity, channel = s.channel, load = s.load, admitted = s.admitted, waiting = s.waiting,
    last = s.last, first = s.first, frontier = s.frontier, wanted = s.wanted, told = s.told, next_end = s.next_end,
    tail_end = s.tail_end, tied = s.tied, buried = s.buried, touched = s.touched
  WHERE address = s.address;
END $$;

-- After someone went: admit whoever now fits, in the order of the tokens, and tell them; whether they are wanted at once.
-- One by one: of a query for all, which stops early, the planner may sort the whole queue first.
CREATE FUNCTION @schema@.settle(s @schema@.turnstile) RETURNS @schema@.turnstile LANGUAGE plpgsql AS $$
DECLARE
  c record;
  before bigint := s.frontier;
  count bigint := 0;
  inboxes text[] := '{}';
  ids bytea[] := '{}';
BEGIN
  LOOP
    SELECT token, weight, id, inbox INTO c FROM @schema@.claim
      WHERE turnstile = s.id AND token > s.frontier ORDER BY token LIMIT 1;
    EXIT WHEN NOT FOUND OR s.load + c.weight > s.capacity;
    s.load := s.load + c.weight;
    s.admitted := s.admitted + 1;
    s.waiting := s.waiting - 1;
    s.frontier := c.token;
    count := count + 1;
    IF c.inbox <> '' THEN
      inboxes := inboxes || c.inbox;
      ids := ids || c.id;
    END IF;
  END LOOP;
  FOR i IN 1..cardinality(ids) LOOP
    PERFORM pg_notify('holdfast_' || inboxes[i], CASE WHEN s.waiting > 0 THEN 'b' ELSE 'a' END || encode(ids[i], 'hex'));
  END LOOP;
  IF s.waiting > 0 THEN
    s.wanted := s.frontier;
    IF s.told >= before OR s.admitted = count THEN s.told := s.frontier; END IF;
  END IF;
  IF s.channel <> '' THEN PERFORM pg_notify(s.channel, ''); END IF;
  RETURN s;
END $$;

-- Drop what ended. A clock that was set back lets no lease stand longer than its length.
CREATE FUNCTION @schema@.sweep(s @schema@.turnstile, now bigint) RETURNS @schema@.turnstile LANGUAGE plpgsql AS $$
DECLARE
  c record;
  went boolean := false;
BEGIN
  IF now < s.touched THEN
    UPDATE @schema@.claim SET ends = now + ttl WHERE turnstile = s.id AND ends > now + ttl;
    s.touched := now;
  END IF;
  FOR c IN
    DELETE FROM @schema@.claim o WHERE o.turnstile = s.id AND (o.ends <= now OR (s.tied AND o.tied AND NOT EXISTS (
      SELECT FROM @schema@.client k JOIN pg_stat_get_activity(NULL) b ON b.pid = k.pid
      WHERE k.inbox = o.inbox AND (b.backend_start IS NULL OR b.backend_start = k.started)
    ))) RETURNING o.token, o.weight
  LOOP
    went := true;
    IF c.token <= s.frontier THEN
      s.admitted := s.admitted - 1;
      s.load := s.load - c.weight;
    ELSE
      s.waiting := s.waiting - 1;
    END IF;
  END LOOP;
  s.tail_end := s.next_end;
  SELECT coalesce(min(ends), 0), coalesce(min(token), 0), coalesce(bool_or(tied), false)
    INTO s.next_end, s.first, s.tied FROM @schema@.claim WHERE turnstile = s.id;
  IF went THEN s := @schema@.settle(s); END IF;
  PERFORM @schema@.save(s);
  RETURN s;
END $$;

-- Somebody asks for what the admitted hold: tell those who were not told yet.
CREATE FUNCTION @schema@.want(s @schema@.turnstile) RETURNS @schema@.turnstile LANGUAGE plpgsql AS $$
BEGIN
  IF s.told < s.frontier THEN
    PERFORM pg_notify('holdfast_' || inbox, 'w' || encode(id, 'hex')) FROM @schema@.claim
      WHERE turnstile = s.id AND token > s.told AND token >= s.first AND token <= s.frontier AND inbox <> '';
  END IF;
  s.told := s.frontier;
  s.wanted := s.frontier;
  RETURN s;
END $$;

-- 'state token wanted look_in_us': -1 where there is nothing to look for.
CREATE FUNCTION @schema@.standing(s @schema@.turnstile, p_token bigint, now bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  before record;
  until bigint;
BEGIN
  IF p_token <= s.frontier THEN
    RETURN '1 ' || p_token || CASE WHEN s.waiting > 0 OR p_token <= s.wanted THEN ' 1 -1' ELSE ' 0 -1' END;
  END IF;
  SELECT token, ends INTO before FROM @schema@.claim
    WHERE turnstile = s.id AND token < p_token AND token >= s.first ORDER BY token DESC LIMIT 1;
  IF NOT FOUND THEN RETURN '2 ' || p_token || ' 0 -1'; END IF;
  until := before.ends;
  IF before.token <= s.frontier AND s.admitted > 1 THEN
    SELECT min(ends) INTO until FROM @schema@.claim
      WHERE turnstile = s.id AND token >= s.first AND token <= s.frontier;
  END IF;
  IF s.tied THEN until := least(until, now + 500000); END IF;  -- those who are tied may go at any time
  RETURN '2 ' || p_token || ' 0 ' || greatest(0, until - now);
END $$;

CREATE FUNCTION @schema@.enter(
  p_address bytea, p_id bytea, p_nowait boolean, p_weight bigint, p_ttl bigint, p_capacity bigint, p_channel text,
  p_inbox text, p_tied boolean, p_owner bytea, p_payload bytea
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  s @schema@.turnstile;
  now bigint := date_part('epoch', clock_timestamp()) * 1000000;
  token bigint;
  look_at bigint;
  fits boolean;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  IF p_channel = '' AND p_weight <= p_capacity AND octet_length(p_payload) <= 1000 THEN
    UPDATE @schema@.turnstile t SET
      capacity = p_capacity, channel = '', last = greatest(last + 1, now), touched = greatest(touched, now),
      load = CASE WHEN waiting > 0 THEN load ELSE p_weight END,
      admitted = CASE WHEN waiting > 0 THEN admitted ELSE 1 END,
      waiting = CASE WHEN waiting > 0 THEN waiting + 1 ELSE 0 END,
      frontier = CASE WHEN waiting > 0 THEN frontier ELSE greatest(last + 1, now) END,
      wanted = CASE WHEN waiting > 0 THEN frontier ELSE wanted END,
      next_end = CASE WHEN waiting > 0 THEN least(next_end, now + p_ttl) ELSE now + p_ttl END,
      since = CASE WHEN waiting > 0 THEN tail_end ELSE now END,
      tail_end = now + p_ttl, tied = p_tied, ttl = p_ttl,
      alone = CASE WHEN waiting > 0 THEN NULL ELSE p_id END, inbox = p_inbox, owner = p_owner, payload = p_payload
    WHERE address = p_address AND buried <= now AND touched < now + 1000000 AND (
      (admitted = 0 AND waiting = 0) OR (
        waiting > 0 AND NOT p_nowait AND capacity = p_capacity AND channel = '' AND NOT tied AND NOT p_tied
        AND told >= frontier AND next_end > now
      )
    ) RETURNING t.id, t.last, t.waiting, t.since INTO s.id, token, s.waiting, look_at;
    IF FOUND THEN
      IF s.waiting = 0 THEN RETURN '1 ' || token || ' 0 -1'; END IF;
      INSERT INTO @schema@.claim
        VALUES (s.id, token, p_id, p_weight, p_ttl, now, now + p_ttl, p_inbox, p_tied, p_owner, p_payload)
        ON CONFLICT (turnstile, id) DO NOTHING;
      IF FOUND THEN RETURN '2 ' || token || ' 0 ' || greatest(0, look_at - now); END IF;
      UPDATE @schema@.turnstile SET waiting = waiting - 1 WHERE address = p_address RETURNING * INTO s;  -- a resend
      SELECT c.token INTO token FROM @schema@.claim c WHERE c.turnstile = s.id AND c.id = p_id;
      RETURN @schema@.standing(s, token, now);
    END IF;
  END IF;
  SELECT * INTO s FROM @schema@.turnstile WHERE address = p_address FOR UPDATE;
  IF NOT FOUND THEN s := @schema@.found(p_address); END IF;
  IF s.alone IS NOT NULL THEN s := @schema@.unfold(s); END IF;
  now := date_part('epoch', clock_timestamp()) * 1000000;
  IF now < s.touched OR s.tied OR (s.next_end <= now AND s.admitted + s.waiting > 0) THEN
    s := @schema@.sweep(s, now);
  END IF;
  IF s.buried > now AND EXISTS (
    SELECT FROM @schema@.tombstone x WHERE x.turnstile = s.id AND x.id = p_id AND x.until > now
  ) THEN
    RETURN '5 0 0 -1';
  END IF;
  IF s.admitted + s.waiting = 0 THEN
    s.capacity := p_capacity;
    s.channel := p_channel;
    s.next_end := now + p_ttl;
    s.first := greatest(s.last + 1, now);
  ELSE
    IF s.capacity <> p_capacity THEN RETURN 'C ' || s.capacity; END IF;
  END IF;
  fits := s.waiting = 0 AND s.load + p_weight <= s.capacity;
  IF p_nowait AND NOT fits THEN
    SELECT c.token INTO token FROM @schema@.claim c WHERE c.turnstile = s.id AND c.id = p_id;
    IF FOUND THEN RETURN @schema@.standing(s, token, now); END IF;
    IF s.wanted < s.frontier THEN PERFORM @schema@.save(@schema@.want(s)); END IF;
    RETURN '3 0 0 -1';
  END IF;
  token := greatest(s.last + 1, now);
  INSERT INTO @schema@.claim
    VALUES (s.id, token, p_id, p_weight, p_ttl, now, now + p_ttl, p_inbox, p_tied, p_owner, p_payload)
    ON CONFLICT (turnstile, id) DO NOTHING;
  IF NOT FOUND THEN  -- a resend
    SELECT c.token INTO token FROM @schema@.claim c WHERE c.turnstile = s.id AND c.id = p_id;
    RETURN @schema@.standing(s, token, now);
  END IF;
  IF fits THEN
    s.admitted := s.admitted + 1;
    s.load := s.load + p_weight;
    s.frontier := token;
  ELSE
    look_at := CASE WHEN s.waiting = 0 THEN s.next_end ELSE s.tail_end END;
    s.waiting := s.waiting + 1;
    IF s.told < s.frontier THEN s := @schema@.want(s); END IF;
    s.wanted := s.frontier;
  END IF;
  UPDATE @schema@.turnstile t SET
    capacity = s.capacity, channel = s.channel, load = s.load, admitted = s.admitted, waiting = s.waiting,
    last = token, first = s.first, frontier = s.frontier, wanted = s.wanted, told = s.told,
    next_end = least(s.next_end, now + p_ttl), tail_end = now + p_ttl, tied = s.tied OR p_tied, touched = now
  WHERE address = p_address;
  IF s.channel <> '' THEN PERFORM pg_notify(s.channel, ''); END IF;
  IF fits THEN RETURN '1 ' || token || ' 0 -1'; END IF;
  IF s.tied THEN look_at := least(look_at, now + 500000); END IF;
  RETURN '2 ' || token || ' 0 ' || CASE WHEN s.admitted + s.waiting = 1 THEN -1 ELSE greatest(0, look_at - now) END;
END $$;

CREATE FUNCTION @schema@.leave(p_address bytea, p_id bytea, p_bury boolean, p_stone bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  s @schema@.turnstile;
  now bigint := date_part('epoch', clock_timestamp()) * 1000000;
  c record;
  there boolean;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  -- A crash that undoes it leaves a claim that stands until its end, ahead of all who came in later: nobody is harmed.
  IF NOT p_bury THEN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE @schema@.turnstile SET alone = NULL, admitted = 0, load = 0, touched = greatest(touched, now)
      WHERE address = p_address AND alone = p_id AND next_end > now AND NOT tied AND channel = '';
    IF FOUND THEN RETURN true; END IF;
  END IF;
  SELECT * INTO s FROM @schema@.turnstile WHERE address = p_address FOR UPDATE;
  IF NOT FOUND THEN s := @schema@.found(p_address); END IF;
  IF s.alone IS NOT NULL THEN s := @schema@.unfold(s); END IF;
  now := date_part('epoch', clock_timestamp()) * 1000000;
  IF now < s.touched OR s.tied OR (s.next_end <= now AND s.admitted + s.waiting > 0) THEN
    s := @schema@.sweep(s, now);
  END IF;
  IF s.buried > now THEN
    SELECT was_there INTO there FROM @schema@.tombstone WHERE turnstile = s.id AND id = p_id AND until > now;
    IF FOUND THEN RETURN there; END IF;
  END IF;
  DELETE FROM @schema@.claim WHERE turnstile = s.id AND id = p_id RETURNING token, weight INTO c;
  there := FOUND;
  s.touched := now;
  IF p_bury OR NOT there THEN
    s.buried := now + p_stone;
    DELETE FROM @schema@.tombstone WHERE turnstile = s.id AND until <= now;
    INSERT INTO @schema@.tombstone VALUES (s.id, p_id, s.buried, there);
  END IF;
  IF there THEN
    IF c.token <= s.frontier THEN
      s.admitted := s.admitted - 1;
      s.load := s.load - c.weight;
    ELSE
      s.waiting := s.waiting - 1;
      s.tail_end := s.next_end;
    END IF;
    IF s.waiting > 0 THEN
      IF c.token = s.first THEN s.first := c.token + 1; END IF;
      s := @schema@.settle(s);
    ELSIF s.channel <> '' THEN
      PERFORM pg_notify(s.channel, '');
    END IF;
  END IF;
  UPDATE @schema@.turnstile SET
    load = s.load, admitted = s.admitted, waiting = s.waiting, first = s.first, frontier = s.frontier,
    wanted = s.wanted, told = s.told, tail_end = s.tail_end, buried = s.buried, touched = now
  WHERE address = p_address;
  RETURN there;
END $$;

-- In the order of the addresses, so that two of them never wait for each other. 'state token wanted look_in_us' of each.
CREATE FUNCTION @schema@.renew(p_addresses bytea[], p_ids bytea[], p_ttls bigint[], p_inboxes text[]) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  s @schema@.turnstile;
  now bigint;
  p_token bigint;
  replies text[] := '{}';
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  FOR i IN 1..cardinality(p_ids) LOOP
    now := date_part('epoch', clock_timestamp()) * 1000000;
    UPDATE @schema@.turnstile SET next_end = now + p_ttls[i], ttl = p_ttls[i], inbox = p_inboxes[i], touched = now
      WHERE address = p_addresses[i] AND alone = p_ids[i] AND next_end > now AND touched <= now AND NOT tied
      RETURNING * INTO s;
    IF FOUND THEN
      replies := replies || @schema@.standing(s, s.frontier, now);
      CONTINUE;
    END IF;
    p_token := NULL;
    SELECT * INTO s FROM @schema@.turnstile WHERE address = p_addresses[i] FOR UPDATE;
    IF FOUND AND s.admitted + s.waiting > 0 THEN
      IF s.alone IS NOT NULL THEN s := @schema@.unfold(s); END IF;
      now := date_part('epoch', clock_timestamp()) * 1000000;
      IF now < s.touched OR s.tied OR s.next_end <= now THEN s := @schema@.sweep(s, now); END IF;
      UPDATE @schema@.claim SET ends = now + p_ttls[i], ttl = p_ttls[i], inbox = p_inboxes[i]
        WHERE turnstile = s.id AND id = p_ids[i] RETURNING token INTO p_token;
      IF FOUND THEN
        UPDATE @schema@.turnstile SET touched = now, next_end = least(s.next_end, now + p_ttls[i])
          WHERE address = p_addresses[i];
      END IF;
    END IF;
    replies := replies || CASE WHEN p_token IS NULL THEN '4 0 0 -1' ELSE @schema@.standing(s, p_token, now) END;
  END LOOP;
  RETURN array_to_string(replies, ' ');
END $$;

CREATE FUNCTION @schema@.look(p_address bytea) RETURNS TABLE (
  capacity bigint, id bytea, token bigint, weight bigint, admitted boolean, owner bytea, payload bytea, age bigint,
  remaining bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s @schema@.turnstile;
  now bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  SELECT * INTO s FROM @schema@.turnstile WHERE address = p_address FOR UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
  IF s.alone IS NOT NULL THEN s := @schema@.unfold(s); END IF;
  now := date_part('epoch', clock_timestamp()) * 1000000;
  IF now < s.touched OR s.tied OR (s.next_end <= now AND s.admitted + s.waiting > 0) THEN
    s := @schema@.sweep(s, now);
  END IF;
  RETURN QUERY SELECT s.capacity, c.id, c.token, c.weight, c.token <= s.frontier, c.owner, c.payload, now - c.since,
    c.ends - now FROM @schema@.claim c WHERE c.turnstile = s.id ORDER BY c.token;
END $$;

CREATE FUNCTION @schema@.list(p_from bytea, p_to bytea) RETURNS TABLE (address bytea, capacity bigint, announces boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT t.address, t.capacity, t.channel <> '' FROM @schema@.turnstile t
  WHERE t.address >= p_from AND t.address < p_to AND (
    (t.alone IS NOT NULL AND t.next_end > @schema@.now_us())
    OR EXISTS (SELECT FROM @schema@.claim c WHERE c.turnstile = t.id AND c.ends > @schema@.now_us())
  ) ORDER BY t.address
$$;

-- From now on the claims of this inbox that are tied stand as long as this very connection does.
CREATE FUNCTION @schema@.tie(p_inbox text) RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  DELETE FROM @schema@.client k WHERE NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) b WHERE b.pid = k.pid);
  INSERT INTO @schema@.client SELECT p_inbox, pid, backend_start FROM pg_stat_get_activity(pg_backend_pid())
  ON CONFLICT (inbox) DO UPDATE SET pid = excluded.pid, started = excluded.started
$$;

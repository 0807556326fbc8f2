-- The cell in PL/pgSQL: one function call per operation, which locks the cell's row first.

CREATE TABLE @schema@.cell (
  id bigint GENERATED ALWAYS AS IDENTITY,
  name bytea PRIMARY KEY,
  turnstile bytea NOT NULL,
  token bigint NOT NULL,
  claim bytea NOT NULL,
  opening bigint NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  value bytea,
  op bytea,                            -- of the last accepted put,
  applied text NOT NULL DEFAULT ''     -- and which of its changes took place
) WITH (fillfactor = 50);

CREATE TABLE @schema@.entry (
  cell bigint NOT NULL,
  key bytea NOT NULL,
  value bytea NOT NULL,
  PRIMARY KEY (cell, key)
);

CREATE FUNCTION @schema@.open(p_name bytea, p_turnstile bytea, p_token bigint, p_claim bytea, p_opening bigint)
RETURNS TABLE (
  accepted boolean, version bigint, token bigint, value bytea, applied text, is_foreign boolean, turnstile bytea
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  c @schema@.cell;
  ours boolean;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  FOR try IN 1..10 LOOP
    SELECT * INTO c FROM @schema@.cell WHERE name = p_name FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO @schema@.cell (name, turnstile, token, claim, opening)
      VALUES (p_name, p_turnstile, p_token, p_claim, p_opening) ON CONFLICT DO NOTHING RETURNING * INTO c;
    EXIT WHEN FOUND;
  END LOOP;
  IF c.id IS NULL THEN RAISE serialization_failure; END IF;
  IF c.turnstile <> p_turnstile THEN
    RETURN QUERY SELECT false, c.version, c.token, NULL::bytea, '', true, c.turnstile;
    RETURN;
  END IF;
  ours := c.token = p_token AND c.claim = p_claim;
  IF p_token > c.token OR (ours AND p_opening > c.opening) THEN
    UPDATE @schema@.cell SET
      token = p_token, claim = p_claim, opening = p_opening, version = c.version + 1, op = NULL, applied = ''
    WHERE name = p_name RETURNING * INTO c;
    ours := true;
  END IF;
  RETURN QUERY
    SELECT ours AND c.opening = p_opening, c.version, c.token, c.value, '', false, c.turnstile;
END $$;

-- A change is (verb, key, content): d deletes, c creates, s sets.
CREATE FUNCTION @schema@.put(
  p_name bytea, p_turnstile bytea, p_token bigint, p_claim bytea, p_opening bigint, p_version bigint, p_op bytea,
  p_value bytea, p_verbs text[], p_keys bytea[], p_contents bytea[]
) RETURNS TABLE (
  accepted boolean, version bigint, token bigint, value bytea, applied text, is_foreign boolean, turnstile bytea
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  c @schema@.cell;
  ours boolean;
  done text[] := '{}';
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN PERFORM @schema@.refuse_isolation(); END IF;
  SELECT * INTO c FROM @schema@.cell WHERE name = p_name FOR UPDATE;
  IF NOT FOUND THEN
    RETURN QUERY SELECT false, 0::bigint, 0::bigint, NULL::bytea, '', false, ''::bytea;
    RETURN;
  END IF;
  ours := c.turnstile = p_turnstile AND c.token = p_token AND c.claim = p_claim AND c.opening = p_opening;
  IF ours AND c.op = p_op THEN
    RETURN QUERY SELECT true, c.version, c.token, NULL::bytea, c.applied, false, c.turnstile;
    RETURN;
  END IF;
  IF NOT ours OR c.version <> p_version THEN
    RETURN QUERY SELECT false, c.version, c.token, NULL::bytea, '', false, c.turnstile;
    RETURN;
  END IF;
  FOR i IN 1..cardinality(p_verbs) LOOP
    IF p_verbs[i] = 'd' THEN
      DELETE FROM @schema@.entry WHERE cell = c.id AND key = p_keys[i];
    ELSIF p_verbs[i] = 'c' THEN
      INSERT INTO @schema@.entry VALUES (c.id, p_keys[i], p_contents[i]) ON CONFLICT DO NOTHING;
    ELSE
      INSERT INTO @schema@.entry VALUES (c.id, p_keys[i], p_contents[i])
        ON CONFLICT (cell, key) DO UPDATE SET value = excluded.value;
    END IF;
    done := done || CASE WHEN FOUND THEN '1' ELSE '0' END;
  END LOOP;
  UPDATE @schema@.cell SET
    version = c.version + 1, value = coalesce(p_value, c.value), op = p_op, applied = array_to_string(done, '')
  WHERE name = p_name RETURNING * INTO c;
  RETURN QUERY SELECT true, c.version, c.token, NULL::bytea, c.applied, false, c.turnstile;
END $$;

-- One row for the cell itself, then one for each entry. STABLE: all rows are of one moment.
CREATE FUNCTION @schema@.read(p_name bytea, p_all boolean, p_keys bytea[]) RETURNS TABLE (
  version bigint, token bigint, claim bytea, key bytea, value bytea
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  c @schema@.cell;
BEGIN
  SELECT * INTO c FROM @schema@.cell WHERE name = p_name;
  IF NOT FOUND THEN RETURN; END IF;
  RETURN QUERY SELECT c.version, c.token, c.claim, NULL::bytea, c.value;
  RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL::bytea, e.key, e.value FROM @schema@.entry e
    WHERE e.cell = c.id AND (p_all OR e.key = ANY (p_keys));
END $$;

CREATE FUNCTION @schema@.drop(p_name bytea) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  p_cell bigint;
BEGIN
  DELETE FROM @schema@.cell WHERE name = p_name RETURNING id INTO p_cell;
  IF NOT FOUND THEN RETURN false; END IF;
  DELETE FROM @schema@.entry WHERE cell = p_cell;
  RETURN true;
END $$;

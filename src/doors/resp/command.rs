//! What clients say when they connect, and people when they look around. Nothing here decides.

use std::fmt::Write;

use crate::engine::time::SECOND;

use super::parse::Arguments;
use super::reply::{self, Version};
use super::session::{Ground, Plan, Session, Then, arity, shown};

/// The version of Redis whose conversation this is. Clients look at it before they use a command.
const REDIS_VERSION: &str = "7.2.0";

/// The most bytes of a connection's name.
const NAME_BYTES_MAX: usize = 128;

/// Every command, as `COMMAND LIST` tells.
const COMMANDS: [&str; 20] = [
    "auth",
    "cl.throttle",
    "client",
    "command",
    "config",
    "del",
    "echo",
    "hello",
    "info",
    "ping",
    "quit",
    "readonly",
    "reset",
    "select",
    "time",
    "toll.check",
    "toll.peek",
    "toll.release",
    "toll.renew",
    "unlink",
];

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

impl Session {
    /// Answers what decides nothing. `name` is the command's in capitals.
    pub(super) fn converse(
        &mut self,
        name: &[u8],
        ground: &Ground,
        arguments: Arguments<'_>,
        plan: &mut Plan,
    ) -> Then {
        let count = arguments.len();
        match name {
            b"PING" if count == 1 => plan.say(|out| reply::simple(out, "PONG")),
            b"PING" | b"ECHO" if count == 2 => plan.say(|out| reply::bulk(out, arguments.get(1))),
            b"HELLO" => self.hello(ground, arguments, plan),
            b"AUTH" if count == 2 || count == 3 => self.auth(ground, arguments, plan),
            b"SELECT" if count == 2 => match arguments.get(1) {
                b"0" => ok(plan),
                other if is_number(other) => plan.error("ERR DB index is out of range"),
                _ => plan.error(NOT_A_NUMBER),
            },
            b"CLIENT" if count >= 2 => self.client(arguments, plan),
            b"COMMAND" => self.command(arguments, plan),
            b"CONFIG" if count >= 2 => self.config(arguments, plan),
            b"INFO" => {
                let text = info(ground);
                plan.say(|out| reply::bulk(out, text.as_bytes()));
            }
            b"TIME" if count == 1 => {
                let nanos = ground.instance.clock.now().utc.as_nanos();
                plan.say(|out| {
                    reply::array(out, 2);
                    reply::bulk(out, (nanos / SECOND).to_string().as_bytes());
                    reply::bulk(out, (nanos % SECOND / 1000).to_string().as_bytes());
                });
            }
            b"READONLY" if count == 1 => ok(plan),
            b"RESET" if count == 1 => {
                self.reset(ground);
                plan.say(|out| reply::simple(out, "RESET"));
            }
            b"QUIT" => {
                ok(plan);
                return Then::Close;
            }
            b"PING" | b"ECHO" | b"AUTH" | b"SELECT" | b"CLIENT" | b"CONFIG" | b"TIME"
            | b"READONLY" | b"RESET" => plan.error(&arity(arguments)),
            _ => plan.error(&unknown(arguments)),
        }
        Then::GoOn
    }

    fn hello(&mut self, ground: &Ground, arguments: Arguments<'_>, plan: &mut Plan) {
        let mut version = self.version;
        if arguments.len() > 1 {
            version = match arguments.get(1) {
                b"2" => Version::Two,
                b"3" => Version::Three,
                other if is_number(other) => {
                    return plan.error("NOPROTO unsupported protocol version");
                }
                _ => {
                    let message = "ERR Protocol version is not an integer or out of range";
                    return plan.error(message);
                }
            };
        }
        let (mut at, mut admitted, mut name) = (2, self.admitted, None);
        while at < arguments.len() {
            let (option, rest) = (arguments.get(at), arguments.len() - at - 1);
            if option.eq_ignore_ascii_case(b"AUTH") && rest >= 2 {
                if !is_user(arguments.get(at + 1)) || !ground.is_password(arguments.get(at + 2)) {
                    return plan.error(WRONG_PASSWORD);
                }
                (at, admitted) = (at + 3, true);
            } else if option.eq_ignore_ascii_case(b"SETNAME") && rest >= 1 {
                (at, name) = (at + 2, Some(arguments.get(at + 1)));
            } else {
                let option = shown(option);
                return plan.error(&format!("ERR Syntax error in HELLO option '{option}'"));
            }
        }
        if !admitted {
            let message = "NOAUTH HELLO must be called with the client already authenticated, \
                           otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
                           authenticate the client and select the RESP protocol version at the \
                           same time";
            return plan.error(message);
        }
        if let Some(name) = name
            && let Err(message) = self.set_name(name)
        {
            return plan.error(message);
        }
        (self.version, self.admitted) = (version, true);
        let id = i64::try_from(self.id).unwrap_or(i64::MAX);
        plan.say(|out| {
            reply::map(out, version, 7);
            let mut text = |name: &str, value: &str| {
                reply::bulk(out, name.as_bytes());
                reply::bulk(out, value.as_bytes());
            };
            text("server", "redis");
            text("version", REDIS_VERSION);
            text("mode", "standalone");
            text("role", "master");
            reply::bulk(out, b"proto");
            reply::integer(out, if version == Version::Three { 3 } else { 2 });
            reply::bulk(out, b"id");
            reply::integer(out, id);
            reply::bulk(out, b"modules");
            reply::array(out, 0);
        });
    }

    fn auth(&mut self, ground: &Ground, arguments: Arguments<'_>, plan: &mut Plan) {
        let (user, password) = match arguments.len() {
            2 if !ground.needs_password() => {
                let message = "ERR AUTH <password> called without any password configured for the \
                               default user. Are you sure your configuration is correct?";
                return plan.error(message);
            }
            2 => (&b"default"[..], arguments.get(1)),
            _ => (arguments.get(1), arguments.get(2)),
        };
        if is_user(user) && ground.is_password(password) {
            self.admitted = true;
            return ok(plan);
        }
        plan.error(WRONG_PASSWORD);
    }

    fn set_name(&mut self, name: &[u8]) -> Result<(), &'static str> {
        if !name.iter().all(u8::is_ascii_graphic) {
            return Err("ERR Client names cannot contain spaces, newlines or special characters.");
        }
        if name.len() > NAME_BYTES_MAX {
            return Err("ERR Client names have at most 128 bytes.");
        }
        self.name = name.to_vec();
        Ok(())
    }

    fn client(&mut self, arguments: Arguments<'_>, plan: &mut Plan) {
        let version = self.version;
        match (&arguments.get(1).to_ascii_uppercase()[..], arguments.len()) {
            (b"ID", 2) => {
                let id = i64::try_from(self.id).unwrap_or(i64::MAX);
                plan.say(|out| reply::integer(out, id));
            }
            (b"SETNAME", 3) => match self.set_name(arguments.get(2)) {
                Ok(()) => ok(plan),
                Err(message) => plan.error(message),
            },
            (b"GETNAME", 2) if self.name.is_empty() => plan.say(|out| reply::null(out, version)),
            (b"GETNAME", 2) => plan.say(|out| reply::bulk(out, &self.name)),
            (b"SETINFO", 4) => {
                let name = arguments.get(2).to_ascii_lowercase();
                match &name[..] {
                    // What the client is called decides nothing here.
                    b"lib-name" | b"lib-ver" => ok(plan),
                    _ => plan.error(&format!("ERR Unrecognized option '{}'", shown(&name))),
                }
            }
            (b"NO-EVICT" | b"NO-TOUCH", 3) => ok(plan),
            (b"INFO", 2) => {
                let resp = if version == Version::Three { 3 } else { 2 };
                let name = String::from_utf8_lossy(&self.name);
                let text = format!("id={} name={name} db=0 resp={resp}\n", self.id);
                plan.say(|out| reply::bulk(out, text.as_bytes()));
            }
            (
                b"ID" | b"SETNAME" | b"GETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" | b"INFO",
                _,
            ) => {
                plan.error(&sub_arity(arguments));
            }
            _ => plan.error(&unknown_sub(arguments)),
        }
    }

    fn command(&self, arguments: Arguments<'_>, plan: &mut Plan) {
        let version = self.version;
        match (&arguments.get(1).to_ascii_uppercase()[..], arguments.len()) {
            // Clients ask to complete what people type, or to find keys in a cluster.
            (b"", 1) => plan.say(|out| reply::array(out, 0)),
            (b"COUNT", 2) => plan.say(|out| reply::integer(out, COMMANDS.len() as i64)),
            (b"LIST", 2) => plan.say(|out| {
                reply::array(out, COMMANDS.len());
                COMMANDS.iter().for_each(|name| reply::bulk(out, name.as_bytes()));
            }),
            (b"DOCS", _) => plan.say(|out| reply::map(out, version, 0)),
            (b"INFO", count) => plan.say(|out| {
                reply::array(out, count - 2);
                for _ in 2..count {
                    match version {
                        Version::Two => out.extend_from_slice(b"*-1\r\n"),
                        Version::Three => reply::null(out, version),
                    }
                }
            }),
            _ => plan.error(&unknown_sub(arguments)),
        }
    }

    /// Load generators and libraries look at a few settings; none of Redis' holds here.
    fn config(&self, arguments: Arguments<'_>, plan: &mut Plan) {
        let version = self.version;
        match (&arguments.get(1).to_ascii_uppercase()[..], arguments.len()) {
            (b"GET", 3..) => plan.say(|out| {
                reply::map(out, version, arguments.len() - 2);
                for name in arguments.from(2) {
                    reply::bulk(out, name);
                    reply::bulk(out, b"");
                }
            }),
            (b"GET", _) => plan.error(&sub_arity(arguments)),
            _ => plan.error(&unknown_sub(arguments)),
        }
    }
}

fn ok(plan: &mut Plan) {
    plan.say(|out| reply::simple(out, "OK"));
}

/// There is one user.
fn is_user(name: &[u8]) -> bool {
    name == b"default"
}

fn is_number(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    !text.is_empty() && text.len() < 10 && text.iter().all(u8::is_ascii_digit)
}

fn sub_arity(arguments: Arguments<'_>) -> String {
    let name = |index| shown(arguments.get(index)).to_ascii_lowercase();
    format!("ERR wrong number of arguments for '{}|{}' command", name(0), name(1))
}

fn unknown_sub(arguments: Arguments<'_>) -> String {
    let (name, sub) = (shown(arguments.get(0)).to_ascii_uppercase(), shown(arguments.get(1)));
    format!("ERR unknown subcommand '{sub}'. Try {name} HELP.")
}

fn unknown(arguments: Arguments<'_>) -> String {
    let mut text =
        format!("ERR unknown command '{}', with args beginning with: ", shown(arguments.get(0)));
    for argument in arguments.from(1) {
        if text.len() > 128 {
            break;
        }
        let _ = write!(text, "'{}' ", shown(argument));
    }
    text
}

/// What `INFO` answers whatever section is asked for.
fn info(ground: &Ground) -> String {
    let instance = &ground.instance;
    let uptime = instance.clock.now().time.as_nanos() / SECOND;
    let (connections, usage) = (&instance.resp_connections, instance.table.load().usage());
    format!(
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nserver_name:tollkeeper\r\n\
         tollkeeper_version:{}\r\nredis_mode:standalone\r\nprocess_id:{}\r\n\
         uptime_in_seconds:{uptime}\r\n\r\n\
         # Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\n\r\n\
         # Persistence\r\nloading:0\r\n\r\n\
         # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n\
         # Cluster\r\ncluster_enabled:0\r\n\r\n\
         # Keyspace\r\ndb0:keys={},expires={},avg_ttl=0\r\n",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        connections.open(),
        connections.max,
        usage.keys,
        usage.keys,
    )
}

/// What one command takes, from which both the parser and the help text are made.
struct CommandSpec: Sendable {
    struct Operand: Sendable {
        var name: String
        var isRequired = true
    }

    struct Option: Sendable {
        /// Without the dashes.
        var long: String
        var short: Character?
        /// The value's name in the help; nil for a switch.
        var value: String?
        var isRequired = false
        /// It may be given several times.
        var isRepeatable = false
        var help: String

        init(_ long: String, short: Character? = nil, value: String? = nil, isRequired: Bool = false, isRepeatable: Bool = false, help: String) {
            self.isRepeatable = isRepeatable
            self.long = long
            self.short = short
            self.value = value
            self.isRequired = isRequired
            self.help = help
        }
    }

    struct Example: Sendable {
        var command: String
        var meaning: String

        init(_ command: String, _ meaning: String) {
            self.command = command
            self.meaning = meaning
        }
    }

    var name: String
    /// One line for the list of commands.
    var summary: String
    var operands: [Operand] = []
    var options: [Option] = []
    /// Paragraphs.
    var description: [String]
    var examples: [Example]
    /// Exit codes beyond 0, 1 and 64.
    var exitCodes: [(code: Int32, meaning: String)] = []

    func option(long name: String) -> Option? { options.first { $0.long == name } }
    func option(short name: Character) -> Option? { options.first { $0.short == name } }
}

extension CommandSpec.Option {
    static let help = CommandSpec.Option("help", short: "h", help: "Print this text.")
    static let config = CommandSpec.Option(
        "config", value: "FILE", help: "Read FILE instead of /etc/shadow-virt/shadow-virt.conf.")
    static let socket = CommandSpec.Option("socket", value: "PATH", help: "The service's control socket, instead of the configured one.")
    static let format = CommandSpec.Option("format", value: "table|json", help: "How to print the answer; table is the default.")
    static let quiet = CommandSpec.Option("quiet", short: "q", help: "Print no progress and no remarks, only data and errors.")

    /// What every command that asks the service takes.
    static let client: [CommandSpec.Option] = [.config, .socket, .format, .quiet, .help]
}

/// One command. `run` returns the exit code or throws what is to be printed.
protocol Command: Sendable {
    var spec: CommandSpec { get }
    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32
}

extension Command {
    /// The command line makes no sense, for this reason.
    func misuse(_ message: String) -> UsageError { UsageError(message: message, command: spec.name) }
}

/// Exit codes, the same for every command.
public enum ExitCode {
    public static let ok: Int32 = 0
    public static let failed: Int32 = 1
    /// A check found something.
    public static let found: Int32 = 2
    /// sysexits.h EX_USAGE.
    public static let usage: Int32 = 64
    /// 128 + SIGINT, as shells have it.
    public static let interrupted: Int32 = 130
}

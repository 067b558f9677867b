import Configuration
import ControlProtocol
import Foundation
import Glibc

/// Every command, and the hooks through which the executable supplies what runs inside the service.
public struct CommandTable: Sendable {
    /// Runs the service until it ends; gets the configuration and the path it came from. Returns the exit code.
    public var serve: @Sendable (ServiceConfiguration, String) -> Int32
    /// Runs a worker process; gets the words after `worker`. Returns the exit code.
    public var worker: @Sendable ([String]) -> Int32
    /// Runs the checks of `doctor` in this process, without a service; the libvirt URI is the configuration's. Nil: the service only.
    public var doctor: (@Sendable (ControlRequest, ServiceConfiguration) throws -> DoctorReport)?

    public init(serve: @escaping @Sendable (ServiceConfiguration, String) -> Int32, worker: @escaping @Sendable ([String]) -> Int32,
                doctor: (@Sendable (ControlRequest, ServiceConfiguration) throws -> DoctorReport)? = nil) {
        self.serve = serve
        self.worker = worker
        self.doctor = doctor
    }

    var commands: [any Command] {
        [ServeCommand(), ProtectCommand(), UnprotectCommand(), StatusCommand(), SwapCommand(), FailoverCommand(),
         PolicyCommand(), PlacementCommand(), DrainCommand.drain, DrainCommand.undrain,
         KPICommand(),
         DriftCommand(), HostsCommand(), DiagnoseCommand(),
         EventsCommand(), TopCommand(), HealthCommand(),
         DoctorCommand(canRunHere: doctor != nil),
         InstallCommand(), UninstallCommand(),
         AnalyzeCommand(),
         HelpCommand()]
    }

    func command(named name: String) throws(UsageError) -> any Command {
        let commands = self.commands
        if let command = commands.first(where: { $0.spec.name == name }) { return command }
        let closest = ClosestName.to(name, among: commands.map(\.spec.name))
        throw UsageError(message: "Unknown command '\(name)'" + (closest.map { ": did you mean '\($0)'?" } ?? ""))
    }

    /// Runs this process's command line and returns the exit code.
    public func main() -> Int32 {
        // A reader that leaves early is seen as EPIPE where we write.
        signal(SIGPIPE, SIG_IGN)
        let environment = ProcessInfo.processInfo.environment
        return run(Array(CommandLine.arguments.dropFirst()), output: .standard(environment: environment), environment: environment)
    }

    /// Runs the command that `words` (without the program's name) ask for.
    public func run(_ words: [String], output: Output, environment: [String: String]) -> Int32 {
        // Workers are started by the service; they are no command for users and print nothing of ours.
        if words.first == "worker" { return worker(Array(words.dropFirst())) }
        let context = CommandContext(table: self, output: output, environment: environment)
        let code = report(output) { try dispatch(words, context) }
        if output.dataError != 0 {
            output.error("Cannot write to stdout: \(String(cString: strerror(output.dataError)))")
            return code == ExitCode.ok ? ExitCode.failed : code
        }
        return code
    }

    private func dispatch(_ words: [String], _ context: CommandContext) throws -> Int32 {
        let (leading, name, rest) = try Self.split(words)
        if leading.contains("--version"), leading.count > 1 || name != nil { throw UsageError(message: "Option '--version' stands alone") }
        guard let name else {
            if leading.contains("--help") || leading.contains("-h") {
                context.output.data(Help.general(commands.map(\.spec)))
                return ExitCode.ok
            }
            guard leading == ["--version"] else {
                throw UsageError(message: "Missing COMMAND")
            }
            context.output.data("shadow-virt \(ProductVersion.text)")
            return ExitCode.ok
        }
        let command = try command(named: name)
        let arguments = try ArgumentParser.parse(leading + rest, command.spec)
        if arguments.has("help") {
            context.output.data(Help.text(command.spec))
            return ExitCode.ok
        }
        return try command.run(arguments, context)
    }

    /// Options may stand before the command as well: everything before it goes to its parser.
    private static func split(_ words: [String]) throws(UsageError) -> (leading: [String], name: String?, rest: [String]) {
        let common = CommandSpec(name: "", summary: "", options: CommandSpec.Option.client, description: [], examples: [])
        var leading: [String] = []
        var rest = words[...]
        while let word = rest.first, word.hasPrefix("-"), word.count > 1 {
            rest.removeFirst()
            leading.append(word)
            if word == "--version" { continue }
            let name = String(word.drop { $0 == "-" }.prefix { $0 != "=" })
            let option = word.hasPrefix("--") ? common.option(long: name) : common.option(short: word.dropFirst().first ?? "-")
            guard let option else {
                let closest = ClosestName.to(word, among: (common.options.map(\.long) + ["version"]).map { "--\($0)" })
                throw UsageError(message: "Unknown option '\(word)' before the command" + (closest.map { ": did you mean '\($0)'?" } ?? ""))
            }
            if option.value != nil, !word.contains("="), let value = rest.popFirst() { leading.append(value) }
        }
        return (leading, rest.first, Array(rest.dropFirst()))
    }

    /// Turns whatever was thrown into a message and an exit code.
    private func report(_ output: Output, _ body: () throws -> Int32) -> Int32 {
        do {
            return try body()
        } catch let error as UsageError {
            output.error(error.message)
            output.message("Try 'shadow-virt \(error.command.map { "\($0) " } ?? "")--help'")
            return ExitCode.usage
        } catch let error as ConfigurationError {
            output.error(error.located, advice: error.advice)
        } catch let error as ControlFailure {
            output.error(error.message, advice: error.advice)
        } catch {
            output.error("\(error)")
        }
        return ExitCode.failed
    }
}

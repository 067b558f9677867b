import Configuration
import ControlProtocol
import Foundation

/// What a command works with: where it writes, and how it reaches the service.
struct CommandContext: Sendable {
    var table: CommandTable
    var output: Output
    var environment: [String: String]

    func format(_ arguments: ParsedArguments, command: String) throws -> OutputFormat {
        guard let name = arguments.value("format") else { return .table }
        guard let format = OutputFormat(rawValue: name) else {
            throw UsageError(message: "Unknown format '\(name)': use table or json", command: command)
        }
        return format
    }

    func configuration(_ arguments: ParsedArguments) throws -> ServiceConfiguration {
        try ServiceConfiguration.load(path: arguments.value("config") ?? ServiceConfiguration.defaultPath,
                                      mustExist: arguments.value("config") != nil, environment: environment)
    }

    /// The client for the socket that the options or the configuration name.
    func client(_ arguments: ParsedArguments, command: String) throws -> ControlClient {
        if let path = arguments.value("socket") {
            guard arguments.value("config") == nil else {
                throw UsageError(message: "Options '--socket' and '--config' exclude each other: the socket is all that is read from the file", command: command)
            }
            return ControlClient(path: path)
        }
        let configuration = try configuration(arguments)
        return ControlClient(path: configuration.controlSocket, group: configuration.controlSocketGroup)
    }

    /// Asks the service, shows progress meanwhile, prints a refusal. `notice` is what Ctrl-C has to say.
    func ask(_ request: ControlRequest, _ arguments: ParsedArguments, command: String, notice: String) throws -> ControlResponse {
        let interrupt = InterruptNotice(output, notice: notice)
        defer { withExtendedLifetime(interrupt) {} }
        return try ask(request, arguments, command: command, interrupt: nil)
    }

    /// The same for a request that Ctrl-C cancels: the answer then tells how it ended. Nil: `interrupt` is the caller's business.
    func ask(_ request: ControlRequest, _ arguments: ParsedArguments, command: String, interrupt: CancelOnInterrupt?) throws -> ControlResponse {
        let format = try format(arguments, command: command)
        let client = try client(arguments, command: command)
        let printer = ProgressPrinter(output, quiet: arguments.has("quiet"))
        defer { printer.clear() }
        let response = try client.exchange(request, cancel: interrupt?.wake) { printer.show($0) }
        if let failure = response.failure {
            printer.clear()
            if format == .json { try print(.failure(failure), arguments, command: command) }
            throw failure
        }
        return response
    }

    func print(_ report: Report, _ arguments: ParsedArguments, command: String) throws {
        let renderer = Renderer(format: try format(arguments, command: command), colour: output.colourOut, width: output.width)
        output.data(try renderer.render(report))
    }

    /// Prints a plain success; with --quiet only where somebody parses it.
    func printDone(_ text: String, _ arguments: ParsedArguments, command: String) throws {
        if arguments.has("quiet"), try format(arguments, command: command) == .table { return }
        try print(.done(text), arguments, command: command)
    }

    func remark(_ text: String, _ arguments: ParsedArguments) {
        if !arguments.has("quiet") { output.message(text) }
    }

    /// The service answered with something other than was asked for.
    func unexpected(_ command: String) -> ControlFailure {
        ControlFailure("The service's answer to '\(command)' lacks what was asked for", advice: "Are CLI and service of the same version?")
    }
}

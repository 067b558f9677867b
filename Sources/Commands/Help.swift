import Configuration
import ControlProtocol

/// `--help`, in the order of a manual page.
enum Help {
    static func text(_ spec: CommandSpec) -> String {
        let examples = spec.examples.map { "    # \($0.meaning)\n    \($0.command)\n" }
        var text = section("NAME", "    shadow-virt \(spec.name) - \(spec.summary)\n")
        text += section("SYNOPSIS", TextWrap.wrap(synopsis(spec), indent: 4) + "\n")
        text += section("DESCRIPTION", spec.description.map { TextWrap.wrap($0, indent: 4) + "\n" }.joined(separator: "\n"))
        text += section("OPTIONS", spec.options.map(option).joined())
        text += section("EXAMPLES", examples.joined(separator: "\n"))
        text += section("EXIT STATUS", exitCodes(spec.exitCodes))
        return String(text.dropLast())
    }

    static func general(_ specs: [CommandSpec]) -> String {
        let width = (specs.map(\.name.count).max() ?? 0) + 2
        let list = specs.map { "    " + $0.name + String(repeating: " ", count: width - $0.name.count) + $0.summary + "\n" }.joined()
        return [
            section("NAME", "    shadow-virt - keep a live shadow of a running KVM guest on another host\n"),
            section("SYNOPSIS", "    shadow-virt COMMAND [OPTION]...\n    shadow-virt COMMAND --help\n    shadow-virt --version\n"),
            section("COMMANDS", list),
            section("COMMON OPTIONS", CommandSpec.Option.client.map(option).joined()),
            section("EXAMPLES", examples),
            section("EXIT STATUS", exitCodes([(ExitCode.found, "a check found something (doctor, status --check)")])),
            section("FILES", files),
            section("ENVIRONMENT", environment),
        ].joined().dropLast(1).description
    }

    private static let examples = """
            # Can this guest be protected?
            shadow-virt doctor web1 --to b

            # Keep a shadow of it on host b, an epoch every 20 ms
            shadow-virt protect web1 --to b --interval 20ms

            # Move it there, losing nothing
            shadow-virt swap web1

        """

    private static let files = """
            \(ServiceConfiguration.defaultPath)
                Configuration; every key is documented there.
            \(ServiceConfiguration(environment: [:]).controlSocket)
                Control socket of the service on this host.

        """

    static let variables: [(name: String, meaning: String)] = [
        ("LIBVIRT_DEFAULT_URI", "libvirt connection when the configuration names none"),
        ("NO_COLOR", "no colour, whatever the terminal"),
        ("SHADOW_VIRT_LOG", "log level of the service: error, warning, info, debug"),
    ]

    private static let environment = variables.map { "    " + $0.name + String(repeating: " ", count: 22 - $0.name.count) + $0.meaning + "\n" }.joined()

    private static func synopsis(_ spec: CommandSpec) -> String {
        let operands = spec.operands.map { $0.isRequired ? $0.name : "[\($0.name)]" }
        let options = spec.options.filter { $0.long != "help" }.map { option in
            let name = "--\(option.long)" + (option.value.map { " \($0)" } ?? "")
            return option.isRequired ? name : "[\(name)]"
        }
        return (["shadow-virt", spec.name] + operands + options).joined(separator: " ")
    }

    private static func option(_ option: CommandSpec.Option) -> String {
        let names = (option.short.map { "-\($0), " } ?? "") + "--\(option.long)" + (option.value.map { " \($0)" } ?? "")
        return "    \(names)\n" + TextWrap.wrap(option.help, indent: 8) + "\n"
    }

    /// Every exit code that a command may have, and what it means.
    static func codes(_ more: [(code: Int32, meaning: String)]) -> [(code: Int32, meaning: String)] {
        [(ExitCode.ok, "success"), (ExitCode.failed, "the command failed; the reason is on stderr")] + more
            + [(ExitCode.usage, "the command line makes no sense"), (ExitCode.interrupted, "interrupted (Ctrl-C)")]
    }

    private static func exitCodes(_ more: [(code: Int32, meaning: String)]) -> String {
        codes(more).map { code, meaning in
            let number = "\(code)"
            return "    " + number + String(repeating: " ", count: 5 - number.count) + meaning + "\n"
        }.joined()
    }

    private static func section(_ title: String, _ body: String) -> String { "\(title)\n\(body)\n" }
}

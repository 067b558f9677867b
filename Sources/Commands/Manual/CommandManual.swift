import Configuration
import ControlProtocol

/// shadow-virt(1), from the commands' own descriptions.
enum CommandManual {
    static func text(_ specs: [CommandSpec]) -> String {
        var page = Roff(name: "shadow-virt", section: 1, date: ProductVersion.date, source: "shadow-virt \(ProductVersion.text)", title: "User Commands")
        page.section("NAME")
        page.raw("shadow\\-virt \\- keep a live shadow of a running KVM guest on another host")
        page.section("SYNOPSIS")
        page.raw("\(Roff.bold("shadow-virt")) \(Roff.italic("COMMAND")) [\(Roff.italic("OPTION"))]...")
        page.raw(".br\n\(Roff.bold("shadow-virt")) \(Roff.italic("COMMAND")) \(Roff.bold("--help"))")
        page.raw(".br\n\(Roff.bold("shadow-virt --version"))")
        page.section("DESCRIPTION")
        page.paragraphs(overview)
        page.section("COMMANDS")
        for spec in specs { command(spec, &page) }
        page.section("COMMON OPTIONS")
        for option in CommandSpec.Option.client { item(option, &page) }
        page.section("EXIT STATUS")
        for code in Help.codes([(ExitCode.found, "a check found something; each command says which")]) { page.item(Roff.bold("\(code.code)"), code.meaning) }
        page.section("FILES")
        for file in files { page.item(Roff.italic(file.path), file.meaning) }
        page.section("ENVIRONMENT")
        for variable in Help.variables { page.item(Roff.bold(variable.name), variable.meaning) }
        page.section("SEE ALSO")
        page.raw("\(Roff.bold("shadow-virt.conf")) (5),\n\(Roff.bold("virsh")) (1),\n\(Roff.bold("systemctl")) (1),\n\(Roff.bold("journalctl")) (1)")
        return page.text
    }

    private static let overview = [
        "shadow-virt keeps a `shadow` of a running guest on another host: its memory, devices and disks, a few milliseconds to seconds behind. `swap` moves the guest "
            + "to its shadow and loses nothing; after a crash the guest goes on from its shadow, at most one epoch back. libvirt and QEMU are those of the distribution.",
        "The commands talk to the service of this host, `shadow-virt serve`, which systemd runs as shadow-virt.service. A DOMAIN is named by name, id or UUID, "
            + "a HOST by its name in the configuration's `peers`.",
    ]

    private static let files: [(path: String, meaning: String)] = {
        let defaults = ServiceConfiguration(environment: [:])
        return [
            (ServiceConfiguration.defaultPath, "The configuration: shadow-virt.conf(5)."),
            (defaults.secretFile, "The secret that hosts prove to each other that they know."),
            (defaults.controlSocket, "Where the service of this host listens for commands."),
            (defaults.stateDirectory, "What must survive a restart: which guests are protected, journals of replicas."),
            ("\(InstallationLayout.hookFolder)/50-shadow-virt", "The hook by which libvirt tells of domains that start and stop."),
            ("PREFIX/libexec/shadow-virt-hook", "What the hook runs: it hands libvirt's call to the service within 100 ms, or gives up, and succeeds in any case."),
        ]
    }()

    private static func command(_ spec: CommandSpec, _ page: inout Roff) {
        page.subsection("\(spec.name) \(spec.operands.map { $0.isRequired ? $0.name : "[\($0.name)]" }.joined(separator: " "))".trimmed)
        page.paragraphs([spec.summary.prefix(1).uppercased() + spec.summary.dropFirst() + "."] + spec.description)
        let common = Set(CommandSpec.Option.client.map(\.long))
        for option in spec.options where !common.contains(option.long) { item(option, &page) }
        let shared = spec.options.filter { common.contains($0.long) }.map { Roff.bold("--\($0.long)") }
        page.raw(".PP\nCommon options: \(shared.joined(separator: ", ")).")
        for code in spec.exitCodes { page.raw(".PP\nExit status \(Roff.bold("\(code.code)")): \(Roff.prose(code.meaning)).") }
        page.raw(".PP\nExamples:")
        page.literal(spec.examples.flatMap { ["# \($0.meaning)", $0.command] })
    }

    private static func item(_ option: CommandSpec.Option, _ page: inout Roff) {
        let value = option.value.map { " \(Roff.italic($0))" } ?? ""
        page.item((option.short.map { "\(Roff.bold("-\($0)")), " } ?? "") + Roff.bold("--\(option.long)") + value, option.help)
    }
}

extension String {
    /// Without spaces at the end.
    fileprivate var trimmed: String { String(reversed().drop { $0 == " " }.reversed()) }
}

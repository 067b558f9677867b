import Configuration
import ControlProtocol

struct DoctorCommand: Command {
    /// The executable brings the checks along: `doctor` works before the service runs.
    let canRunHere: Bool

    var spec: CommandSpec {
        let connect = CommandSpec.Option("connect", short: "c", value: "URI", help:
            "Check the libvirt at URI, from this process and without the service; default: the service's own, or libvirt_uri when it does not run.")
        return CommandSpec(
            name: "doctor", summary: "check whether this host, or a domain, can be protected",
            operands: [.init(name: "DOMAIN", isRequired: false)],
            options: [.init("to", value: "HOST", help: "Check as well what HOST, a name from 'peers', has to offer.")]
                + (canRunHere ? [connect] : []) + CommandSpec.Option.client,
            description: [
                "Looks for everything that protection needs: KVM, a QEMU with COLO in a version that works, libvirt, memory, and for a DOMAIN "
                    + "(name, id or UUID) whatever cannot be replicated. Prints one line a check, and below it what to do.",
                "It changes nothing.",
            ],
            examples: [
                .init("shadow-virt doctor", "Is this host fit?"),
                .init("shadow-virt doctor web1 --to b", "Can web1 have a shadow on host b?"),
            ],
            exitCodes: [(ExitCode.found, "a check failed")])
    }

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let report = try self.report(arguments, context)
        try context.print(.doctor(report), arguments, command: spec.name)
        let failed = report.findings.count { $0.verdict == .failed }, warnings = report.findings.count { $0.verdict == .warning }
        context.remark("\(Quantity.count(report.findings.count, "check")), \(failed) failed, \(Quantity.count(warnings, "warning"))", arguments)
        return failed == 0 ? ExitCode.ok : ExitCode.found
    }

    private func report(_ arguments: ParsedArguments, _ context: CommandContext) throws -> DoctorReport {
        let request = ControlRequest(.doctor, domain: arguments.operands.first, to: arguments.value("to"))
        if let uri = arguments.value("connect"), let check = context.table.doctor {
            guard arguments.value("socket") == nil else {
                throw misuse("Options '--connect' and '--socket' exclude each other: with --connect the service is not asked")
            }
            var configuration = try context.configuration(arguments)
            configuration.libvirtURI = uri
            return try check(request, configuration)
        }
        do {
            let response = try context.ask(request, arguments, command: spec.name, notice: "")
            guard let report = response.doctor else { throw context.unexpected(spec.name) }
            return report
        } catch ControlClientError.notRunning(let path) {
            guard let check = context.table.doctor, arguments.value("socket") == nil else { throw ControlClientError.notRunning(path: path) }
            context.remark("The service does not run (\(path)); checking from here", arguments)
            return try check(request, try context.configuration(arguments))
        }
    }
}

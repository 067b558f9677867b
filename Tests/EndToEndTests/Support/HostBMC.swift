import Foundation
import Glibc
import XCTest

/// The BMC of one of the hosts: OpenIPMI's ipmi_sim in the host's own network, with one sensor, its CPU's temperature. HealthTests have all kinds of them.
final class HostBMC {
    static let port = 9623, password = "hands-off-4711"
    private static let consolePort = 9624

    /// Why there can be none here.
    static let obstacle: String? = ["ipmi_sim", "sdrcomp"].first { !TwoHosts.isInstalled($0) }.map { "no \($0) (Debian: apt install openipmi)" }

    /// The password's file, for both hosts.
    static let passwordFile: String = {
        let path = NSTemporaryDirectory() + "/bmc-password-\(getpid())"
        _ = FileManager.default.createFile(atPath: path, contents: Data("\(password)\n".utf8), attributes: [.posixPermissions: 0o600])
        return path
    }()

    /// Lines for a host's configuration.
    static var configuration: [String] {
        ["bmc_address = \"127.0.0.1:\(port)\"", "bmc_user = \"admin\"", "bmc_password_file = \"\(passwordFile)\"", "bmc_interval = 5",
         "bmc_workarounds = [ \"opensesspriv\" ]"]
    }

    private let hosts: TwoHosts
    private let host: Host
    private let process: ChildProcess

    init(_ hosts: TwoHosts, _ host: Host) throws {
        (self.hosts, self.host) = (hosts, host)
        let folder = hosts.folder + "/bmc-\(host.rawValue)", descriptions = folder + "/state/ipmi_sim/test"
        try FileManager.default.createDirectory(atPath: descriptions, withIntermediateDirectories: true)
        for (name, text) in [("lan.conf", Self.lan), ("bmc.emu", Self.emulator), ("bmc.sdrs", Self.sensor)] {
            try text.write(toFile: "\(folder)/\(name)", atomically: true, encoding: .utf8)
        }
        let compiled = try runCommand(["sdrcomp", "-8", "-o", descriptions + "/sdr.20.main", folder + "/bmc.sdrs"], limit: 10)
        try require(compiled.succeeded, "sdrcomp: \(compiled.summary)")
        process = try ChildProcess([TwoHosts.script, "exec", hosts.folder, host.rawValue, "ipmi_sim", "-c", folder + "/lan.conf", "-f", folder + "/bmc.emu",
                                    "-s", folder + "/state", "-n"])
        try waitUntil("ipmi_sim of \(host.name) answers", limit: 10) { try self.console("").contains(">") }
    }

    /// °C; 80 is a warning, 90 critical.
    func heat(_ degrees: Int) throws { _ = try console("sensor_set_value 0x20 0 1 \(degrees) 1") }

    func stop() {
        kill(process.pid, SIGKILL)
        _ = process.wait(limit: 5)
    }

    private func console(_ command: String) throws -> String {
        try hosts.run(host, ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/\(Self.consolePort) || exit 0; printf '%s\\n' \"$1\" >&3; timeout 1 cat <&3", "console", command], limit: 10).out
    }

    private static let lan = """
        name "test"
        set_working_mc 0x20
          startlan 1
            addr 127.0.0.1 \(port)
            priv_limit admin
        \(["callback", "user", "operator", "admin"].map { "    allowed_auths_\($0) md5" }.joined(separator: "\n"))
            guid 00112233445566778899aabbccddeeff
          endlan
          user 2 true "admin" "\(password)" admin 10 md5
        console 127.0.0.1 \(consolePort)

        """

    private static let emulator = """
        mc_setbmc 0x20
        mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
        sel_enable 0x20 200 0x0a
        sensor_add 0x20 0 0 35 0x6f event-only
        sensor_set_event_support 0x20 0 0 enable scanning per-state 000000000001111 000000000000000 000000000001111 000000000000000
        sensor_add 0x20 0 1 1 0x1
        sensor_set_event_support 0x20 0 1 enable scanning per-state 000001010000000 000001010000000 000001010000000 000001010000000
        sensor_set_threshold 0x20 0 1 settable 011000 0 90 80 0 0 0
        sensor_set_value 0x20 0 1 45 0
        mc_enable 0x20

        """

    private static let sensor: String = {
        let fields = """
            sensor_owner_id 0x20|sensor_owner_lun 0|channel_number 0|sensor_number 1|entity_id system_board|entity_instance 1|init_scanning true|init_events true
            init_sensor_type true|default_event_gen_on true|default_sensor_scan_on true|sensor_auto_rearm true|sensor_event_msg_ctrl per_state
            sensor_type Temperature|event_reading_type_code 0x1|init_thresholds true|init_hysteresis true|sensor_hysteresis settable
            sensor_threshold_access settable|analog_data_format unsigned|rate_unit none|modifier_unit none|percentage false|base_unit degrees_C
            modifier_unit_code unspecified|linearization linear|m 1|tolerance 0|b 0|accuracy 1|accuracy_exp 0|sensor_direction input|r_exp 0|b_exp 0
            sensor_maximum 255|sensor_minimum 0|positive_hysteresis 0|negative_hysteresis 0
            return_unc true|assert_uncgh true|deassert_uncgh true|unc_thrsh_settable true|unc_thrsh_readable true|unc_thresh 80
            return_uc true|assert_ucgh true|deassert_ucgh true|uc_thrsh_settable true|uc_thrsh_readable true|uc_thresh 90|id_string "CPU Temp"
            """
        return "sdr type 1\n" + fields.split(whereSeparator: { $0 == "|" || $0 == "\n" }).map { "  \($0)\n" }.joined() + "endsdr\n"
    }()
}

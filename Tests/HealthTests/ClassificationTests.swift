import CIPMIMonitoring
import Configuration
import ControlProtocol
import XCTest
@testable import Health

final class ClassificationTests: XCTestCase {
    /// Sensor types and offsets as the specification numbers them (tables 42-2 and 42-3).
    func testKindsOfEvents() {
        let redundancy = 0x0A, predictive = 3, processor = 0x0E, memory = 0x13, drive = 0x14
        let cases: [(type: Int?, offsetType: Int?, offset: Int?, kind: HardwareEventKind)] = [
            (1, 0, 9, .temperature), (2, 0, 2, .voltage), (3, 0, 7, .voltage), (4, 0, 2, .fan), (0x0A, 2, 1, .fan),
            (8, 0x0F, 1, .powerSupply), (8, 0x0F, 2, .powerSupply), (9, 0x10, 4, .powerSupply), (9, redundancy, 1, .redundancyLost), (4, redundancy, 1, .redundancyLost),
            (12, memory, 0, .correctableECC), (12, memory, 5, .correctableECC), (12, memory, 1, .uncorrectableECC), (12, memory, 2, .uncorrectableECC),
            (12, memory, 3, .uncorrectableECC), (12, memory, 6, .other), (12, memory, 10, .temperature), (12, memory, nil, .other), (12, memory, 99, .other),
            (13, drive, 1, .driveFault), (13, drive, 6, .driveFault), (13, drive, 8, .driveFault), (13, drive, 2, .drivePredictiveFailure), (13, drive, 0, .other),
            (13, drive, 7, .other), (13, predictive, 1, .drivePredictiveFailure), (4, predictive, 1, .fan),
            (7, processor, 0, .processor), (7, processor, 1, .temperature), (7, processor, 10, .temperature), (7, processor, nil, .processor),
            (5, 0x0C, 0, .other), (0xC5, 0xFE, 3, .other), (nil, nil, nil, .other), (-1, -1, -1, .other), (.max, .max, .max, .other),
        ]
        for one in cases {
            XCTAssertEqual(Classification.kind(type: one.type, offsetType: one.offsetType, offset: one.offset), one.kind, "\(one)")
        }
    }

    func testKindsOfSensors() {
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "CPU", .critical, bits: 3)), .temperature)
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "DIMM", .critical, type: 12, bitsType: 0x13, bits: 0b11)), .uncorrectableECC)
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "DIMM", .warning, type: 12, bitsType: 0x13, bits: 0b1)), .correctableECC)
        // Present (bit 0) says nothing.
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "Bay", .critical, type: 13, bitsType: 0x14, bits: 0b101)), .drivePredictiveFailure)
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "Bay", .nominal, type: 13, bitsType: 0x14, bits: 0b1)), .other)
        XCTAssertEqual(Classification.kind(of: Sample.sensor(1, "PSUs", .critical, type: 9, bitsType: 0x0A, bits: 0b10)), .redundancyLost)
    }

    func testWorkaroundsBecomeFlags() {
        XCTAssertEqual([BMCWorkaround.opensesspriv].flags(in: .lan20), 0x10)
        XCTAssertEqual([BMCWorkaround.authcap, .supermicro20, .nochecksumcheck].flags(in: .lan20), 0x45)
        // The same bits mean something else there.
        XCTAssertEqual([BMCWorkaround.authcap, .idzero, .endianseq, .opensesspriv].flags(in: .lan15), 0x13)
        XCTAssertEqual([BMCWorkaround.authcap, .opensesspriv].flags(in: .driver), 0)
        XCTAssertEqual([BMCWorkaround.assumeio, .spinpoll].flags(in: .driver), 3)
        XCTAssertEqual([BMCWorkaround.assumeio, .spinpoll].flags(in: .lan20), 0)
        XCTAssertEqual([BMCWorkaround]().sensorFlags, 2)
        XCTAssertEqual([BMCWorkaround.discretereading, .assumebmcowner].sensorFlags, 0xA2)
        XCTAssertEqual([BMCWorkaround.opensesspriv, .assumesystemevent].logFlags, 4)
        for workaround in BMCWorkaround.allCases {
            let one = [workaround]
            let ofReading = one.logFlags | (one.sensorFlags & ~2)
            for session in BMCSession.allCases where ofReading == 0 {
                XCTAssertEqual(one.flags(in: session) != 0, workaround.sessions.contains(session), "\(workaround) in a \(session) session")
            }
        }
    }

    func testRulesWithoutTheirComments() {
        XCTAssertEqual(Interpretation.withoutComments("# a\n\n  # b\n#A Nominal\n"), "")
        XCTAssertEqual(Interpretation.withoutComments("# a\nA Warning # why\n\n B  Critical\n"), "A Warning # why\n B  Critical\n")
        XCTAssertEqual(Interpretation.withoutComments("A \\\n Warning\n#x\nB \\\n# y\nC Nominal"), "A \\\n Warning\nB \\\n# y\nC Nominal\n")
        XCTAssertEqual(Interpretation.sensors.first?.components(separatedBy: "\n").filter { $0.hasSuffix("_Threshold Warning") }.count, 2)
    }

    func testNames() {
        XCTAssertEqual(IPMINames.sensorType(1), "temperature")
        XCTAssertEqual(IPMINames.sensorType(Int(IPMI_MONITORING_SENSOR_TYPE_MEMORY.rawValue)), "memory")
        XCTAssertEqual(IPMINames.sensorType(Int(IPMI_MONITORING_SENSOR_TYPE_WATCHDOG2.rawValue)), "watchdog2")
        XCTAssertEqual(IPMINames.sensorType(Int(IPMI_MONITORING_SENSOR_TYPE_FRU_STATE.rawValue)), "fru_state")
        XCTAssertEqual(IPMINames.sensorType(0xC1), "type_193")
        XCTAssertEqual(IPMINames.sensorType(-1), "type_-1")
        XCTAssertEqual(IPMINames.state(77), .unknown)
    }

    /// Every error of the library has a sentence with a way out, and none tells the password.
    func testFailures() {
        for host in ["192.0.2.1:623", nil] {
            let request = BMCRequest(host: host, user: "watch", password: "s3cret", cacheDirectory: "/x", silenceLimitMs: 1, totalLimitMs: 1)
            for code in 0..<Int(IPMI_MONITORING_ERR_ERRNUMRANGE.rawValue) {
                let failure = request.failure(code: code, text: "library's word")
                XCTAssertFalse(failure.failure.message.isEmpty || failure.failure.message.hasSuffix("."), "\(code)")
                XCTAssertFalse("\(failure)".contains("s3cret"), "\(code)")
            }
        }
        let request = BMCRequest(host: "192.0.2.1:623", user: "watch", cacheDirectory: "/x", silenceLimitMs: 1, totalLimitMs: 1)
        let kinds: [(ipmi_monitoring_error_codes, BMCFailure.Kind)] = [
            (IPMI_MONITORING_ERR_CONNECTION_TIMEOUT, .unreachable), (IPMI_MONITORING_ERR_HOSTNAME_INVALID, .unreachable),
            (IPMI_MONITORING_ERR_USERNAME_INVALID, .refused), (IPMI_MONITORING_ERR_PASSWORD_INVALID, .refused),
            (IPMI_MONITORING_ERR_PASSWORD_VERIFICATION_TIMEOUT, .refused), (IPMI_MONITORING_ERR_CIPHER_SUITE_ID_UNAVAILABLE, .refused),
            (IPMI_MONITORING_ERR_PRIVILEGEL_LEVEL_CANNOT_BE_OBTAINED, .refused), (IPMI_MONITORING_ERR_IPMI_ERROR, .other),
        ]
        for (code, kind) in kinds { XCTAssertEqual(request.failure(code: Int(code.rawValue), text: "").kind, kind) }
    }
}
